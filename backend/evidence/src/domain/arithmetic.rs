//! Mathematics that is made: word problems with worked solutions, tables, long sums, equations.

use fastrand::Rng;

use super::{Content, Source};

/// Documents.
const COUNT: u64 = 40;

/// Length that a document has at least, in bytes.
const LENGTH: usize = 1800;

/// Makes one exercise.
type Make = fn(&mut Rng) -> String;

pub(super) fn sources() -> Vec<Source> {
    (0..COUNT)
        .map(|seed| {
            let mut random = Rng::with_seed(1000 + seed);
            let kinds: [(&str, Make); 4] = [
                ("problems", problem),
                ("written sums", sum),
                ("equations", equation),
                ("tables", table),
            ];
            let (name, make) = kinds[(seed % 4) as usize];
            let mut text = String::new();
            for number in 1.. {
                text.push_str(&format!("Exercise {number}. {}\n\n", make(&mut random)));
                if text.len() >= LENGTH {
                    break;
                }
            }
            Source { name: format!("{name} {seed}"), content: Content::Text(text) }
        })
        .collect()
}

fn pick<'a>(random: &mut Rng, all: &[&'a str]) -> &'a str {
    all[random.usize(..all.len())]
}

const PEOPLE: [&str; 8] = ["Ada", "Ben", "Carla", "David", "Elena", "Farid", "Grace", "Hugo"];
const THINGS: [&str; 8] =
    ["apples", "pencils", "stickers", "books", "marbles", "stamps", "cookies", "tickets"];

fn problem(random: &mut Rng) -> String {
    let (one, thing) = (pick(random, &PEOPLE), pick(random, &THINGS));
    let other = loop {
        let other = pick(random, &PEOPLE);
        if other != one {
            break other;
        }
    };
    match random.u32(..4) {
        0 => {
            let (boxes, each) = (random.u32(3..13), random.u32(4..25));
            let (all, gone) = (boxes * each, random.u32(2..boxes * each / 2));
            format!(
                "{one} has {boxes} boxes with {each} {thing} in each. {one} gives {gone} {thing} to {other}. How many \
                 {thing} are left?\nSolution: There are {boxes} × {each} = {all} {thing} at first. After giving away \
                 {gone}, there are {all} - {gone} = {} left. The answer is {}.",
                all - gone,
                all - gone
            )
        }
        1 => {
            let (price, count) = (random.u32(2..20), random.u32(3..12));
            let (cost, paid) = (price * count, price * count + random.u32(1..50));
            format!(
                "One of the {thing} costs {price} dollars. {one} buys {count} and pays with {paid} dollars. How much \
                 change does {one} get?\nSolution: The {thing} cost {count} × {price} = {cost} dollars. The change is \
                 {paid} - {cost} = {} dollars. The answer is {}.",
                paid - cost,
                paid - cost
            )
        }
        2 => {
            let (speed, hours) = (10 * random.u32(3..10), random.u32(2..8));
            let more = random.u32(5..60);
            format!(
                "{one} drives at {speed} kilometres per hour for {hours} hours, and then {more} kilometres more to see \
                 {other}. How far is that?\nSolution: In {hours} hours {one} drives {speed} × {hours} = {} kilometres. \
                 With the last {more} kilometres that is {} + {more} = {} kilometres. The answer is {}.",
                speed * hours,
                speed * hours,
                speed * hours + more,
                speed * hours + more
            )
        }
        _ => {
            let (share, people) = (random.u32(3..20), random.u32(3..9));
            let (rest, all) = (random.u32(1..people), share * people);
            format!(
                "{one} and {other} share {} {thing} equally among {people} children. How many does each child get, and \
                 how many are left over?\nSolution: {people} × {share} = {all}, and {} - {all} = {rest}. Each child \
                 gets {share} {thing}, and {rest} are left over.",
                all + rest,
                all + rest
            )
        }
    }
}

fn sum(random: &mut Rng) -> String {
    let count = random.usize(3..6);
    let terms: Vec<u32> = (0..count).map(|_| random.u32(12..980)).collect();
    let written = terms.iter().map(u32::to_string).collect::<Vec<_>>().join(" + ");
    let mut text = format!("Compute {written}.\n");
    let mut total = terms[0];
    for term in &terms[1..] {
        text.push_str(&format!("{total} + {term} = {}\n", total + term));
        total += term;
    }
    let factor = random.u32(3..13);
    let (tens, ones) = (total / 10 * 10, total % 10);
    text.push_str(&format!(
        "So the sum is {total}. Times {factor}: {tens} × {factor} = {}, {ones} × {factor} = {}, together {}.",
        tens * factor,
        ones * factor,
        total * factor
    ));
    text
}

fn equation(random: &mut Rng) -> String {
    let (a, x, b) = (random.i32(2..15), random.i32(-12..30), random.i32(1..60));
    let right = a * x + b;
    let squares = [random.u32(2..20), random.u32(2..20)];
    format!(
        "Solve {a}x + {b} = {right}.\nSubtract {b} from both sides: {a}x = {right} - {b} = {}.\nDivide both sides by {a}: \
         x = {} / {a} = {x}.\nCheck: {a} · ({x}) + {b} = {} + {b} = {right}.\nFurther, {}² + {}² = {} + {} = {}.",
        right - b,
        right - b,
        a * x,
        squares[0],
        squares[1],
        squares[0] * squares[0],
        squares[1] * squares[1],
        squares[0] * squares[0] + squares[1] * squares[1]
    )
}

fn table(random: &mut Rng) -> String {
    let (first, step) = (random.u32(2..40), random.u32(1..9));
    let mut text = String::from(
        "Complete the table.\n| n | square | double | n + 100 |\n| --- | --- | --- | --- |\n",
    );
    for row in 0..random.u32(5..9) {
        let n = first + row * step;
        text.push_str(&format!("| {n} | {} | {} | {} |\n", n * n, 2 * n, n + 100));
    }
    let last = first + 4 * step;
    text.push_str(&format!("The difference between two rows is {step}; the fifth n is {last}."));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `a op b = c` that is written must be right.
    #[test]
    fn the_arithmetic_is_right() {
        let mut checked = 0;
        for source in sources() {
            let Content::Text(text) = source.content else { panic!("{}", source.name) };
            let words: Vec<&str> = text.split_whitespace().collect();
            let number = |word: &str| word.trim_end_matches(['.', ',', ';']).parse::<i64>().ok();
            for at in words.windows(5) {
                let [Some(a), Some(b), Some(c)] = [at[0], at[2], at[4]].map(number) else {
                    continue;
                };
                let found = match (at[1], at[3]) {
                    ("+", "=") => a + b,
                    ("-", "=") => a - b,
                    ("×", "=") => a * b,
                    ("/", "=") => a / b,
                    _ => continue,
                };
                // A longer sum ends in such words, too: "3 + 4 + 5 = 12" is not written.
                assert_eq!(found, c, "{}: {at:?}", source.name);
                checked += 1;
            }
        }
        assert!(checked > 500, "{checked}");
    }
}
