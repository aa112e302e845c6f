//! Tasks with answers that can be checked, of the kinds that a small model can do: copying, short arithmetic, and looking
//! something up in a text that is given.
//!
//! They say what divergence means to a reader: an answer that leaves the shadow's may still be right. All are made from
//! fixed seeds, so that each policy gets the same ones.

use fastrand::Rng;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Some words again, in their order.
    Copy,
    /// A sum or a difference of small numbers.
    Arithmetic,
    /// A number that the text gives for a name.
    LookUp,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Copy, Self::Arithmetic, Self::LookUp];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copying",
            Self::Arithmetic => "arithmetic",
            Self::LookUp => "look-up",
        }
    }
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// What is asked for.
    pub kind: Kind,
    /// The user's message.
    pub message: String,
    /// What a right answer says.
    pub expected: String,
}

impl Task {
    /// Whether an answer is right: the words that were to be copied stand in it in their order, with nothing between
    /// them but spaces and signs; or the first number in it is the one that was asked for.
    pub fn is_right(&self, answer: &str) -> bool {
        match self.kind {
            Kind::Copy => words(answer)
                .windows(words(&self.expected).len())
                .any(|window| window == words(&self.expected)),
            Kind::Arithmetic | Kind::LookUp => {
                let given = match self.kind {
                    // "17 + 25 = 42" repeats the question.
                    Kind::Arithmetic => answer.rsplit('=').next().unwrap_or(answer),
                    _ => answer,
                };
                numbers(given).next() == Some(self.expected.as_str())
            }
        }
    }
}

/// Words in small letters, without signs.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Runs of digits.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty())
}

const NOUNS: [&str; 24] = [
    "river", "lamp", "garden", "window", "stone", "bread", "cloud", "horse", "letter", "bridge",
    "apple", "candle", "mirror", "forest", "button", "kettle", "island", "pencil", "ladder",
    "blanket", "market", "feather", "harbor", "violin",
];

const NAMES: [&str; 16] = [
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate",
    "Liam", "Mary", "Noah", "Olga", "Paul",
];

const THINGS: [&str; 6] = ["room", "locker", "seat", "ticket", "table", "parking space"];

/// So many tasks of each kind, no two the same; equal for equal arguments.
pub fn tasks(of_each: usize, seed: u64) -> Vec<Task> {
    let mut random = Rng::with_seed(seed);
    let mut found: Vec<Task> = Vec::with_capacity(of_each * Kind::ALL.len());
    for kind in Kind::ALL {
        let before = found.len();
        while found.len() < before + of_each {
            let task = match kind {
                Kind::Copy => copy(&mut random),
                Kind::Arithmetic => arithmetic(&mut random),
                Kind::LookUp => look_up(&mut random),
            };
            if !found[before..].contains(&task) {
                found.push(task);
            }
        }
    }
    found
}

/// So many of these, each once, in an order that is drawn.
fn some<'a>(random: &mut Rng, of: &[&'a str], count: usize) -> Vec<&'a str> {
    let mut all = of.to_vec();
    random.shuffle(&mut all);
    all.truncate(count);
    all
}

fn copy(random: &mut Rng) -> Task {
    let count = random.usize(4..=8);
    let expected = some(random, &NOUNS, count).join(" ");
    let message = format!("Repeat these words exactly, in the same order: {expected}");
    Task { kind: Kind::Copy, message, expected }
}

fn arithmetic(random: &mut Rng) -> Task {
    let (a, b) = (random.u32(2..60), random.u32(2..40));
    let (sign, result) = match random.bool() {
        true => ('+', a + b),
        false => ('-', a.max(b) - a.min(b)),
    };
    let (a, b) = if sign == '-' { (a.max(b), a.min(b)) } else { (a, b) };
    let message = format!("What is {a} {sign} {b}? Answer with the number only.");
    Task { kind: Kind::Arithmetic, message, expected: result.to_string() }
}

fn look_up(random: &mut Rng) -> Task {
    let count = random.usize(3..=6);
    let thing = THINGS[random.usize(..THINGS.len())];
    let names = some(random, &NAMES, count);
    let mut given: Vec<u32> = Vec::new();
    while given.len() < count {
        let number = random.u32(101..1000);
        if !given.contains(&number) {
            given.push(number);
        }
    }
    let text: Vec<_> = names
        .iter()
        .zip(&given)
        .map(|(name, number)| format!("{name} has {thing} {number}."))
        .collect();
    let asked = random.usize(..count);
    let message = format!(
        "{} Which {thing} does {} have? Answer with the number only.",
        text.join(" "),
        names[asked]
    );
    Task { kind: Kind::LookUp, message, expected: given[asked].to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_many_and_the_same_each_time() {
        let all = tasks(100, 1);
        assert_eq!(all, tasks(100, 1));
        assert_ne!(all, tasks(100, 2));
        for kind in Kind::ALL {
            assert_eq!(all.iter().filter(|task| task.kind == kind).count(), 100);
        }
        for (at, task) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other != task));
            // What is asked for is in the question, but for a result.
            let told = task.message.contains(&task.expected);
            assert!(told || task.kind == Kind::Arithmetic, "{task:?}");
        }
    }

    #[test]
    fn results_are_right() {
        for task in tasks(200, 3).iter().filter(|task| task.kind == Kind::Arithmetic) {
            let given: Vec<i64> = numbers(&task.message).map(|n| n.parse().unwrap()).collect();
            let result = match task.message.contains('+') {
                true => given[0] + given[1],
                false => given[0] - given[1],
            };
            assert_eq!(result.to_string(), task.expected, "{}", task.message);
        }
    }

    #[test]
    fn answers_are_judged() {
        let copy =
            Task { kind: Kind::Copy, message: String::new(), expected: "river lamp stone".into() };
        assert!(copy.is_right("Sure: River, lamp, stone."));
        assert!(!copy.is_right("river stone lamp"));
        assert!(!copy.is_right("river lamp"));
        let sum = Task { kind: Kind::Arithmetic, message: String::new(), expected: "42".into() };
        assert!(sum.is_right("42") && sum.is_right("17 + 25 = 42.") && sum.is_right("It is 42"));
        assert!(!sum.is_right("421") && !sum.is_right("17 + 25 = 41") && !sum.is_right("none"));
        let room = Task { kind: Kind::LookUp, ..sum };
        assert!(room.is_right("Room 42.") && !room.is_right("7, then 42"));
    }
}
