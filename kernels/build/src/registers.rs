//! What a kernel takes of a multiprocessor: registers, spills, memory; by ptxas's report.
//!
//! `KERNEL(name, Arguments, THREADS, BLOCKS)` declares how many threads a block has and how many blocks a
//! multiprocessor must hold; that bounds the registers. ptxas keeps to the bound by spilling, so a spill
//! is how a kernel breaks its word. Both are checked: the bound costs nothing to check.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Registers of a multiprocessor, on every target.
const REGISTERS: u32 = 65_536;
/// What an instruction can name.
const MOST: u32 = 255;
/// Registers are given to warps in units of this many a thread.
const UNIT: u32 = 8;

/// What one kernel takes on one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Name of the kernel.
    pub kernel: String,
    /// Such as `sm_90a`.
    pub target: String,
    /// Threads of a block, as declared.
    pub threads: u32,
    /// Resident blocks of a multiprocessor, as declared.
    pub blocks: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread that its registers had no room for, stores and loads.
    pub spilled: u32,
    /// Bytes of a thread's stack frame.
    pub stack: u32,
    /// Bytes of shared memory, beside the dynamic ones.
    pub shared: u32,
}

impl Usage {
    /// Registers that the declaration leaves a thread.
    pub fn limit(&self) -> u32 {
        let room = REGISTERS / (self.threads * self.blocks).max(1);
        (room / UNIT * UNIT).min(MOST)
    }

    /// What breaks the declaration, if something does.
    pub fn fault(&self) -> Option<String> {
        let Self { kernel, target, registers, spilled, .. } = self;
        if *spilled > 0 {
            Some(format!("{kernel} spills {spilled} bytes a thread on {target}"))
        } else if *registers > self.limit() {
            let limit = self.limit();
            Some(format!("{kernel} takes {registers} registers on {target}, declared are {limit}"))
        } else {
            None
        }
    }
}

/// Declared threads and blocks by kernel.
pub(crate) type Bounds = BTreeMap<String, (u32, u32)>;

/// Launch bounds out of PTX.
pub(crate) fn read_bounds(ptx: &str, bounds: &mut Bounds) -> Result<(), String> {
    let mut entry: Option<&str> = None;
    let mut threads = None;
    let mut blocks = 1;
    for line in ptx.lines() {
        if let Some(rest) = line.trim_start().strip_prefix(".visible .entry ") {
            entry = Some(rest.trim_end_matches('(').trim());
            (threads, blocks) = (None, 1);
        } else if let Some(rest) = line.strip_prefix(".maxntid ") {
            // Up to three dimensions; how many are written depends on the target.
            threads = rest.split(',').map(|n| n.trim().parse::<u32>().ok()).product();
        } else if let Some(rest) = line.strip_prefix(".minnctapersm ") {
            blocks = rest.trim().parse().map_err(|_| format!("unknown PTX: {line}"))?;
        } else if line.starts_with('{')
            && let Some(name) = entry.take()
        {
            let threads = threads.ok_or_else(|| {
                format!("kernel {name} has no launch bounds: declare it by KERNEL")
            })?;
            bounds.insert(name.to_owned(), (threads, blocks));
        }
    }
    Ok(())
}

/// Reads what `nvcc -Xptxas -v` printed.
pub(crate) fn read_report(report: &str, bounds: &Bounds) -> Result<Vec<Usage>, String> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in report.lines() {
        let line = line.trim();
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            let (Some(kernel), Some(target)) = (quoted.next(), quoted.nth(1)) else {
                return Err(format!("unknown line of ptxas: {line}"));
            };
            let (threads, blocks) = *bounds
                .get(kernel)
                .ok_or_else(|| format!("kernel {kernel} is not in the intermediate code"))?;
            usages.push(Usage {
                kernel: kernel.to_owned(),
                target: target.to_owned(),
                threads,
                blocks,
                registers: 0,
                spilled: 0,
                stack: 0,
                shared: 0,
            });
            continue;
        }
        // Lines about a function that was not inlined count for the kernel they follow.
        let Some(usage) = usages.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            usage.stack += before(line, " bytes stack frame");
            usage.spilled +=
                before(line, " bytes spill stores") + before(line, " bytes spill loads");
        } else if line.contains(" registers") {
            usage.registers = usage.registers.max(before(line, " registers"));
            usage.shared += before(line, " bytes smem");
        }
    }
    match usages.iter().find(|usage| usage.registers == 0) {
        Some(usage) => Err(format!("ptxas does not say what registers {} takes", usage.kernel)),
        None => Ok(usages),
    }
}

/// The number that stands before `words`; 0 where they are not.
fn before(line: &str, words: &str) -> u32 {
    let number = |head: &str| {
        let digits = head.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        head[digits..].parse().ok()
    };
    line.split_once(words).and_then(|(head, _)| number(head)).unwrap_or(0)
}

const HEAD: &str = "kernel\ttarget\tthreads\tblocks\tregisters\tspilled\tstack\tshared";

/// Usages as a table, a line each, tabs between the columns.
pub fn write_table(usages: &[Usage]) -> String {
    let mut table = format!("{HEAD}\n");
    for Usage { kernel, target, threads, blocks, registers, spilled, stack, shared } in usages {
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{kernel}\t{target}\t{threads}\t{blocks}\t{registers}\t{spilled}\t{stack}\t{shared}"
        );
    }
    table
}

/// Reads what [`write_table`] wrote; nothing where the text is something else.
pub fn read_table(table: &str) -> Option<Vec<Usage>> {
    let mut lines = table.lines();
    if lines.next()? != HEAD {
        return None;
    }
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            let &[kernel, target, ref numbers @ ..] = cells.as_slice() else { return None };
            let numbers: Vec<u32> =
                numbers.iter().map(|cell| cell.parse().ok()).collect::<Option<_>>()?;
            let &[threads, blocks, registers, spilled, stack, shared] = numbers.as_slice() else {
                return None;
            };
            let (kernel, target) = (kernel.to_owned(), target.to_owned());
            Some(Usage { kernel, target, threads, blocks, registers, spilled, stack, shared })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "
.visible .entry plain(
\t.param .align 8 .b8 plain_param_0[48]
)
.maxntid 256, 1, 1
.minnctapersm 2
{
\tret;
}
.func (.param .b32 out) beside(
{
}
.visible .entry wide(
)
.maxntid 64
{
}
";

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'plain' for 'sm_80'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes smem, 408 bytes cmem[0]
ptxas info    : Compile time = 2.653 ms
ptxas info    : Compiling entry function 'wide' for 'sm_90a'
ptxas info    : Function properties for wide
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
";

    fn bounds() -> Bounds {
        let mut bounds = Bounds::new();
        read_bounds(PTX, &mut bounds).unwrap();
        bounds
    }

    #[test]
    fn launch_bounds_are_read_in_either_spelling() {
        let expected = [("plain".to_owned(), (256, 2)), ("wide".to_owned(), (64, 1))];
        assert_eq!(bounds(), Bounds::from(expected));
    }

    #[test]
    fn a_kernel_without_launch_bounds_is_refused() {
        let error =
            read_bounds(".visible .entry bare(\n)\n{\n}\n", &mut Bounds::new()).unwrap_err();
        assert!(error.contains("kernel bare has no launch bounds"), "{error}");
    }

    #[test]
    fn a_report_is_read_kernel_by_kernel() {
        let usages = read_report(REPORT, &bounds()).unwrap();
        let [plain, wide] = usages.as_slice() else { panic!("{usages:?}") };
        assert_eq!((plain.kernel.as_str(), plain.target.as_str()), ("plain", "sm_80"));
        assert_eq!((plain.registers, plain.spilled, plain.stack, plain.shared), (40, 0, 0, 16));
        assert_eq!((wide.registers, wide.spilled, wide.stack, wide.shared), (255, 36, 24, 0));
        assert_eq!(plain.fault(), None);
        assert_eq!(wide.fault().unwrap(), "wide spills 36 bytes a thread on sm_90a");
    }

    #[test]
    fn a_report_about_other_kernels_is_refused() {
        let error = read_report(REPORT, &Bounds::new()).unwrap_err();
        assert!(error.contains("plain is not in the intermediate code"), "{error}");
        let cut: String = REPORT.lines().take(4).collect::<Vec<_>>().join("\n");
        let error = read_report(&cut, &bounds()).unwrap_err();
        assert!(error.contains("does not say what registers plain takes"), "{error}");
    }

    #[test]
    fn declarations_leave_whole_units_of_registers() {
        let mut usage = read_report(REPORT, &bounds()).unwrap().remove(0);
        for (threads, blocks, limit) in
            [(256, 2, 128), (256, 3, 80), (128, 1, 255), (1024, 1, 64), (96, 5, 136)]
        {
            (usage.threads, usage.blocks) = (threads, blocks);
            assert_eq!(usage.limit(), limit, "{threads} threads, {blocks} blocks");
        }
        (usage.threads, usage.blocks, usage.registers) = (1024, 1, 72);
        let fault = usage.fault().unwrap();
        assert_eq!(fault, "plain takes 72 registers on sm_80, declared are 64");
    }

    #[test]
    fn a_table_comes_back_as_it_was_written() {
        let usages = read_report(REPORT, &bounds()).unwrap();
        let table = write_table(&usages);
        assert_eq!(read_table(&table), Some(usages));
        assert_eq!(read_table("something else\n"), None);
        assert_eq!(read_table(&table.replace("255", "many")), None);
    }
}
