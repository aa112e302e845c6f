//! Passes that break a rule are refused whole, with a message that says which.

use rewind_checkpoint::Architecture;
use rewind_cpu::{Config, CpuError, CpuExecutor};
use rewind_engine::{
    Adapter, Executor, ExecutorError, Input, Outputs, PageCopy, PageId, Pass, Slot, Ticket,
    TokenMask, Weights,
};
use rewind_monitor::{Detector, Gate};

use crate::tiny::{self, Precision};

#[test]
fn invalid_passes_name_their_defect() {
    let model = tiny::model(&tiny::spec(Architecture::Llama), Precision::F16, "int8");
    let mut executor = tiny::executor(&model, tiny::config());
    let good = || {
        let row = |slot, position| tiny::row(slot, position, 1, tiny::everything(position));
        tiny::pass(Weights::Draft, vec![row(0, 0), row(0, 1), row(1, 0)])
    };
    let gate = |detector| Some(Gate { detector, threshold: 1.0 });
    type Break<'a> = (&'a str, Box<dyn Fn(&mut Pass)>);
    let cases: Vec<Break<'_>> = vec![
        ("layers", Box::new(|p| p.layers = 0..1)),
        ("at most 300", Box::new(|p| p.rows = vec![p.rows[0].clone(); 301])),
        ("copy of page 200", Box::new(|p| p.copies = vec![copy(3, 200)])),
        ("copy of page 999", Box::new(|p| p.copies = vec![copy(999, 1)])),
        ("page 200 in the table of slot 0", Box::new(|p| p.tables[0].pages = [PageId(200)].into())),
        ("two page tables for slot 0", Box::new(|p| p.tables.push(tiny::table(0)))),
        ("slot 8", Box::new(|p| p.tables[0].slot = Slot(8))),
        ("row 2: slot 8", Box::new(|p| p.rows[2].slot = Slot(8))),
        ("slot 1 has no page table", Box::new(|p| p.tables.truncate(1))),
        ("row 1: position 400", Box::new(|p| p.rows[1].position = 400)),
        (
            "needs 2 pages; its table has 1",
            Box::new(|p| {
                p.tables[0].pages = [PageId(1)].into();
                p.rows[1].position = 12;
            }),
        ),
        ("token 1100", Box::new(|p| p.rows[0].input = Input::Token(1100))),
        ("row 0: slot 9", Box::new(|p| p.rows[0].input = Input::LastOf(Slot(9)))),
        ("hidden states", Box::new(|p| p.rows[0].input = Input::Hidden(Slot(0)))),
        ("adapter 4", Box::new(|p| p.rows[0].adapter = Some(Adapter(4)))),
        ("21 log-probabilities", Box::new(|p| p.rows[0].outputs.logprobs = Some(21))),
        ("tap after 3", Box::new(|p| p.rows[0].outputs.tap = Some(3))),
        (
            "wants nothing",
            Box::new(move |p| {
                p.rows[0].outputs = Outputs::default();
                p.rows[0].gate = gate(Detector::Entropy);
            }),
        ),
        (
            "chooses no token",
            Box::new(move |p| {
                p.rows[0].outputs.choose = None;
                p.rows[0].gate = gate(Detector::Margin);
            }),
        ),
        (
            "mask of 2 words",
            Box::new(|p| {
                let choose = p.rows[0].outputs.choose.as_mut().expect("everything");
                choose.mask = Some(TokenMask(vec![0; 2].into()));
            }),
        ),
        ("position 0 follows position 0", Box::new(|p| p.rows[1].position = 0)),
        ("no neighbours", Box::new(|p| p.rows.swap(1, 2))),
    ];
    for (message, spoil) in cases {
        let mut pass = good();
        spoil(&mut pass);
        match executor.submit(pass) {
            Err(ExecutorError::InvalidPass(found)) => {
                assert!(found.contains(message), "{found:?} does not say {message:?}");
            }
            other => panic!("{message}: {other:?}"),
        }
    }
    assert!(tiny::run(&mut executor, good()).is_ok(), "the pass is good if nothing is spoiled");
    let empty = Pass { rows: Vec::new(), ..good() };
    assert_eq!(tiny::run(&mut executor, empty), Ok(Vec::new()));
    assert!(matches!(executor.wait(Ticket(77)), Err(ExecutorError::InvalidPass(_))));
}

fn copy(from: u32, to: u32) -> PageCopy {
    PageCopy { from: PageId(from), to: PageId(to) }
}

#[test]
fn settings_out_of_range_are_refused() {
    let model = tiny::model(&tiny::spec(Architecture::Llama), Precision::F16, "int8");
    let good = tiny::config();
    let cases = [
        ("threads is 0", Config { threads: 0, ..good }),
        ("threads is 1025", Config { threads: 1025, ..good }),
        ("slots is 0", Config { slots: 0, ..good }),
        ("rows is 0", Config { rows: 0, ..good }),
        ("pages is 0", Config { pages: 0, ..good }),
        ("page_tokens is 0", Config { page_tokens: 0, ..good }),
        ("positions is 0", Config { positions: 0, ..good }),
        ("no memory for", Config { pages: u32::MAX as usize, page_tokens: 1 << 30, ..good }),
    ];
    for (message, config) in cases {
        let error = CpuExecutor::new(model.clone(), config).expect_err(message);
        assert!(error.to_string().contains(message), "{error} does not say {message:?}");
        assert!(matches!(error, CpuError::Setting { .. } | CpuError::KvMemory { .. }));
    }
}
