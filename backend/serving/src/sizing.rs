//! How much memory for keys and values, how many sequences, how long.
//!
//! All defaults in one place, as pure functions of the model's shape, the options and the memory there
//! is. The KV cache is the one that matters. On the CPU its pages cost nothing until they are first
//! used, but the memory is everybody's: a generous default, bounded by a share of the machine. On a GPU
//! memory that is not taken at load serves nobody: the default is all that every sequence at full length
//! could come to need, bounded by what the weights leave.

use rewind_checkpoint::ModelSpec;
use rewind_engine::Limits;

use crate::load_error::LoadError;
use crate::options::{MAX_WINDOW, Options};

/// Positions in a KV page.
pub(crate) const PAGE_TOKENS: u32 = 32;
/// Longest sequence by default, where the model does not set a lower limit.
pub(crate) const DEFAULT_POSITIONS: u32 = 4096;
/// Sequences that run at once by default.
pub(crate) const DEFAULT_SEQUENCES: u32 = 64;
/// Rows of a pass by default, besides one for each sequence, on the CPU: enough for a prompt chunk to
/// use the weights well, little enough for the sequences beside it not to wait long.
pub(crate) const CPU_PROMPT_ROWS: u32 = 128;
/// The same on a GPU, which needs more rows before it computes longer than it reads weights.
pub(crate) const GPU_PROMPT_ROWS: u32 = 512;
/// On the CPU the default cache holds this many sequences of full length: more short ones, since a
/// sequence reserves only what it may need.
pub(crate) const DEFAULT_FULL_SEQUENCES: u64 = 8;
/// On the CPU the default cache takes at most this part of the memory.
const MEMORY_SHARE: u64 = 4;
/// On a GPU the default cache leaves this part of what is free after weights and buffers, for what
/// allocations round up to …
const RESERVE_SHARE: u64 = 20;
/// … and at least this much, for what the driver takes itself: kernels, recorded graphs, the stack.
const LEAST_RESERVE: u64 = 256 << 20;

/// Longest sequence, in tokens.
pub(crate) fn positions(spec: &ModelSpec, options: &Options) -> Result<u32, LoadError> {
    let made_for = u32::try_from(spec.max_positions).unwrap_or(u32::MAX);
    match options.max_sequence_length {
        Some(asked) if asked > made_for => Err(LoadError::TooLong { asked, made_for }),
        Some(asked) => Ok(asked),
        None => Ok(made_for.min(DEFAULT_POSITIONS)),
    }
}

/// Refuses sizes that cannot do for this model, as far as that can be told before its weights are
/// packed. `page` is the least that a KV page can take.
pub(crate) fn check(spec: &ModelSpec, options: &Options, page: u64) -> Result<(), LoadError> {
    positions(spec, options)?;
    let needed = options.policy.with(options.window, options.refresh).pass_rows();
    if let Some(rows) = options.max_batch_rows.filter(|&rows| u64::from(rows) < needed) {
        return Err(LoadError::BatchRows { rows, needed, policy: options.policy });
    }
    enough_kv_memory(options, page).map(drop)
}

/// The memory set for keys and values, if it was set, which must hold one page of `page` bytes.
fn enough_kv_memory(options: &Options, page: u64) -> Result<Option<u64>, LoadError> {
    match options.kv_memory {
        Some(bytes) if bytes < page => {
            Err(LoadError::KvMemory { bytes, page, tokens: PAGE_TOKENS })
        }
        set => Ok(set),
    }
}

/// Memory that the default cache is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// All memory of a machine that computes on its CPU, in bytes.
    Machine(u64),
    /// Memory of a GPU that weights and buffers leave, in bytes.
    Gpu(u64),
}

/// Sizes of an executor that do not depend on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Longest sequence, in tokens.
    pub(crate) positions: u32,
    /// Sequences that run at once.
    pub(crate) slots: u32,
    /// Rows of a pass.
    pub(crate) rows: u32,
}

impl Sizes {
    /// As set, else the defaults, with `prompt_rows` rows of a pass besides one for each sequence.
    pub(crate) fn of(
        spec: &ModelSpec,
        options: &Options,
        prompt_rows: u32,
    ) -> Result<Self, LoadError> {
        let slots = options.max_sequences.unwrap_or(DEFAULT_SEQUENCES);
        // Every sequence has a row in the pass that decodes it, and prompts must not starve beside them.
        let rows = options.max_batch_rows.unwrap_or_else(|| slots.saturating_add(prompt_rows));
        Ok(Self { positions: positions(spec, options)?, slots, rows })
    }

    /// KV pages of a sequence of full length.
    fn pages_of_one(self) -> u64 {
        self.positions.saturating_add(MAX_WINDOW).div_ceil(PAGE_TOKENS).into()
    }

    /// KV pages of all sequences at full length: more are never used.
    pub(crate) fn pages_of_all(self) -> u64 {
        self.pages_of_one() * u64::from(self.slots)
    }

    /// Limits of an executor of these sizes, whose KV pages take `page` bytes each.
    pub(crate) fn limits(
        self,
        spec: &ModelSpec,
        options: &Options,
        page: u64,
        room: Room,
    ) -> Result<Limits, LoadError> {
        let Self { positions, slots, rows } = self;
        if rows < slots {
            tracing::warn!(
                "max_batch_rows = {rows} is less than max_sequences = {slots}: only {rows} sequences \
                 will run at once, and prompts wait for rows that they leave; raise max_batch_rows"
            );
        }
        let of_one = self.pages_of_one();
        let pages = match (enough_kv_memory(options, page)?, room) {
            (Some(bytes), _) => bytes / page,
            (None, Room::Machine(memory)) => {
                let wanted = of_one * DEFAULT_FULL_SEQUENCES.min(slots.into());
                wanted.min(memory / MEMORY_SHARE / page).max(1)
            }
            (None, Room::Gpu(free)) => {
                let wanted = self.pages_of_all();
                let reserve = LEAST_RESERVE.max(free / RESERVE_SHARE);
                wanted.min(free.saturating_sub(reserve) / page).max(1)
            }
        };
        if pages < of_one {
            tracing::warn!(
                "the KV cache holds {} tokens, less than one sequence of max_sequence_length = \
                 {positions}: longer requests will be refused; raise kv_memory",
                pages * u64::from(PAGE_TOKENS)
            );
        }
        Ok(Limits {
            vocabulary: u32::try_from(spec.vocab_size).unwrap_or(u32::MAX),
            layers: u16::try_from(spec.layers).unwrap_or(u16::MAX),
            slots,
            rows,
            // Page ids are 32-bit; that many pages of any real model exceed every machine.
            pages: u32::try_from(pages).unwrap_or(u32::MAX),
            page_tokens: PAGE_TOKENS,
            positions,
        })
    }
}

/// Bytes of memory that this process may use: the machine's, or its control group's if lower.
pub(crate) fn memory() -> u64 {
    // Where the system does not say, what any machine that runs a server has.
    const UNKNOWN: u64 = 4 << 30;
    let Ok(mut system) = sysinfo::System::new() else { return UNKNOWN };
    system.refresh_memory();
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    match system.total_memory().min(group) {
        0 => UNKNOWN,
        memory => memory,
    }
}

#[cfg(test)]
mod tests {
    use rewind_checkpoint::{Architecture, Rope, RopeScaling};

    use super::*;
    use crate::policy::PolicyName;

    /// A page of the model below, on the CPU.
    const PAGE: u64 = 30 * 2 * 3 * 64 * 4 * PAGE_TOKENS as u64;

    fn spec() -> ModelSpec {
        ModelSpec {
            architecture: Architecture::Llama,
            vocab_size: 49_152,
            hidden_size: 576,
            intermediate_size: 1536,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            rms_epsilon: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            max_positions: 2048,
            tied_head: true,
            qkv_bias: false,
            qk_norm: false,
        }
    }

    fn options(change: impl FnOnce(&mut Options)) -> Options {
        let mut options = Options::new("m".into());
        change(&mut options);
        options
    }

    fn on_cpu(spec: &ModelSpec, options: &Options, memory: u64) -> Result<Limits, LoadError> {
        let sizes = Sizes::of(spec, options, CPU_PROMPT_ROWS)?;
        sizes.limits(spec, options, PAGE, Room::Machine(memory))
    }

    fn on_gpu(options: &Options, free: u64) -> Limits {
        let sizes = Sizes::of(&spec(), options, GPU_PROMPT_ROWS).unwrap();
        sizes.limits(&spec(), options, PAGE, Room::Gpu(free)).unwrap()
    }

    /// Pages of one sequence of full length.
    const OF_ONE: u32 = (2048 + 64) / 32;

    #[test]
    fn defaults_follow_the_model_and_the_machine() {
        let roomy = on_cpu(&spec(), &options(|_| ()), 64 << 30).unwrap();
        assert_eq!((roomy.positions, roomy.slots, roomy.rows), (2048, 64, 192));
        assert_eq!(roomy.pages, 8 * OF_ONE);
        let tight = on_cpu(&spec(), &options(|_| ()), 1 << 30).unwrap();
        assert_eq!(u64::from(tight.pages), (1 << 28) / PAGE);
        let long = ModelSpec { max_positions: 131_072, ..spec() };
        assert_eq!(on_cpu(&long, &options(|_| ()), 64 << 30).unwrap().positions, 4096);
    }

    #[test]
    fn a_gpu_gets_more_rows_and_room_for_every_sequence() {
        let roomy = on_gpu(&options(|_| ()), 64 << 30);
        assert_eq!((roomy.positions, roomy.slots, roomy.rows), (2048, 64, 64 + 512));
        assert_eq!(roomy.pages, 64 * OF_ONE);
        let tight = on_gpu(&options(|_| ()), 6 << 30);
        assert_eq!(u64::from(tight.pages), (6 << 30) / 20 * 19 / PAGE, "a part is left free");
        let tighter = on_gpu(&options(|_| ()), 1 << 30);
        assert_eq!(
            u64::from(tighter.pages),
            (768 << 20) / PAGE,
            "room for the driver is left free"
        );
        assert_eq!(on_gpu(&options(|_| ()), 0).pages, 1);
        let set = on_gpu(&options(|o| o.kv_memory = Some(7 * PAGE)), 0);
        assert_eq!(set.pages, 7, "whether it is there is for the device to say");
        assert_eq!(on_gpu(&options(|o| o.max_sequences = Some(1)), 64 << 30).pages, OF_ONE);
    }

    #[test]
    fn options_win() {
        let set = options(|o| {
            o.kv_memory = Some(100 << 20);
            o.max_sequence_length = Some(512);
            o.max_sequences = Some(2);
            o.max_batch_rows = Some(16);
        });
        for limits in [on_cpu(&spec(), &set, 1 << 20).unwrap(), on_gpu(&set, 1 << 20)] {
            assert_eq!((limits.positions, limits.slots, limits.rows), (512, 2, 16));
            assert_eq!(u64::from(limits.pages), (100 << 20) / PAGE);
        }
    }

    #[test]
    fn one_sequence_needs_room_for_one_only() {
        let alone = options(|o| o.max_sequences = Some(1));
        assert_eq!(on_cpu(&spec(), &alone, 64 << 30).unwrap().pages, OF_ONE);
    }

    #[test]
    fn impossible_wishes_are_errors() {
        let error = |o: Options| on_cpu(&spec(), &o, 64 << 30).unwrap_err().to_string();
        let long = error(options(|o| o.max_sequence_length = Some(4096)));
        assert!(long.contains("4096") && long.contains("2048"), "{long}");
        let small = error(options(|o| o.kv_memory = Some(1000)));
        assert!(small.contains("kv_memory") && small.contains("1000"), "{small}");
    }

    #[test]
    fn sizes_are_checked_before_there_is_an_executor() {
        let tried = |o: Options| check(&spec(), &o, PAGE).map_err(|error| error.to_string());
        assert_eq!(tried(options(|_| ())), Ok(()));
        assert_eq!(tried(options(|o| o.kv_memory = Some(PAGE))), Ok(()));
        let small = tried(options(|o| o.kv_memory = Some(PAGE - 1))).unwrap_err();
        assert!(small.contains("kv_memory") && small.contains(&(PAGE - 1).to_string()), "{small}");
        let rows = |policy, rows| {
            tried(options(|o| {
                (o.policy, o.window, o.refresh) = (policy, 4, 8);
                o.max_batch_rows = Some(rows);
            }))
        };
        assert_eq!(rows(PolicyName::Window, 13), Ok(()));
        let few = rows(PolicyName::Window, 12).unwrap_err();
        assert!(few.contains("max_batch_rows is 12") && few.contains("13"), "{few}");
        assert_eq!((rows(PolicyName::Off, 1), rows(PolicyName::Lossless, 5)), (Ok(()), Ok(())));
        let long = tried(options(|o| o.max_sequence_length = Some(4096))).unwrap_err();
        assert!(long.contains("4096") && long.contains("2048"), "{long}");
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory() > 64 << 20);
    }
}
