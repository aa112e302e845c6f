//! Every primitive against a naive form of it.

use super::*;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    a: Address,
    b: Address,
    c: Address,
    out: Address,
    count: u32,
    unused: u32,
}

/// Runs a kernel of `primitives.cu` over words and returns `len` words that it wrote.
fn run(kernel: &'static str, operands: [&[u32]; 3], grid: (u32, u32), len: usize) -> Vec<u32> {
    let mut results = ORDERS.map(|order| {
        let mut emulator = emulator(order);
        let [a, b, c] = operands.map(|words| put(&mut emulator, words));
        let out = emulator.allocate(4 * len, Fill::Nothing).unwrap().address;
        let arguments = Arguments { a, b, c, out, count: operands[0].len() as u32, unused: 0 };
        launch(&mut emulator, kernel, grid.0, grid.1, &arguments).unwrap();
        get(&mut emulator, out, len)
    });
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{kernel}: the order shows");
    std::mem::take(&mut results[0])
}

/// Runs a kernel that maps words to words and compares each with `expected`.
fn check(kernel: &'static str, operands: [&[u32]; 3], expected: impl Fn(u32, u32, u32) -> u32) {
    let [a, b, c] = operands;
    let results = run(kernel, operands, (4, 256), a.len());
    for (i, &result) in results.iter().enumerate() {
        let wanted = expected(a[i], b[i], c[i]);
        assert_eq!(
            result, wanted,
            "{kernel}({:#x}, {:#x}, {:#x}): {result:#x}, not {wanted:#x}",
            a[i], b[i], c[i]
        );
    }
}

fn random(seed: u64, len: usize) -> Vec<u32> {
    let mut random = rewind_kernels_suite::Random::new(seed);
    (0..len).map(|_| random.word()).collect()
}

/// Words whose two halves are f16 of every kind, often close to each other.
fn halves(seed: u64, len: usize) -> Vec<u32> {
    let special = [
        0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00,
        0x7e01,
    ];
    let pick = |word: u32| match word >> 29 {
        0 => special[word as usize % special.len()],
        // Exponents around 1, so that sums cancel and round.
        1 | 2 => 0x3000 | (word & 0x8fff),
        _ => word & 0xffff,
    };
    let words = random(seed, 2 * len);
    words.chunks_exact(2).map(|pair| pick(pair[0]) | pick(pair[1]) << 16).collect()
}

/// The f32 on both sides of every f16 and of every tie between two, and some at random.
fn f32_around_f16() -> Vec<u32> {
    let mut words = random(5, 1 << 16);
    for bits in 0..=u16::MAX {
        let x = f16::from_bits(bits).to_f32();
        let next = f16::from_bits(bits.wrapping_add(1)).to_f32();
        for centre in [x, (x + next) / 2.0] {
            let centre = centre.to_bits();
            words.extend([centre.wrapping_sub(1), centre, centre.wrapping_add(1)]);
        }
    }
    words.extend([65519.996_f32, 65520.0, 65536.0, -65520.0, f32::MAX, f32::MIN].map(f32::to_bits));
    words
}

#[test]
fn conversions_from_16_bits_are_exact() {
    let all: Vec<u32> = (0..=0xffff).collect();
    check("test_f32_of_f16", [&all; 3], |a, _, _| {
        let x = f16::from_bits(a as u16);
        if x.is_nan() { 0x7fff_ffff } else { x.to_f32().to_bits() }
    });
    check("test_f32_of_bf16", [&all; 3], |a, _, _| a << 16);
}

#[test]
fn conversions_to_16_bits_round_to_even() {
    let words = f32_around_f16();
    check("test_f16_of_f32", [&words; 3], |a, _, _| {
        let x = f32::from_bits(a);
        let saturated = f16::from_f32(x.clamp(-65504.0, 65504.0));
        if x.is_nan() { 0x7fff } else { saturated.to_bits().into() }
    });
    check("test_bf16_of_f32", [&words; 3], |a, _, _| {
        let x = half::bf16::from_f32(f32::from_bits(a));
        if x.is_nan() { 0x7fff } else { x.to_bits().into() }
    });
}

#[test]
fn conversion_to_tf32_rounds_ties_away() {
    let mut words = f32_around_f16();
    words.extend([
        0x3f80_1000,
        0x3f80_0fff,
        0xbf80_1000,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x7f80_0001,
    ]);
    check("test_tf32_of_f32", [&words; 3], |a, _, _| {
        let x = f64::from(f32::from_bits(a));
        if x.is_nan() {
            return 0x7fff_ffff;
        }
        // The two neighbours on the grid, and the nearer one, or the larger.
        let below = a & !0x1fff;
        let above = below.wrapping_add(0x2000);
        if x.is_infinite() || a == below {
            return below;
        }
        // Beyond the largest number the grid goes on: at 2^128, which is infinity.
        let value = |bits: u32| match f64::from(f32::from_bits(bits)) {
            infinite if infinite.is_infinite() => 2f64.powi(128) * infinite.signum(),
            finite => finite,
        };
        if (x - value(below)).abs() < (value(above) - x).abs() { below } else { above }
    });
}

/// n · 2^-48 as f16, rounded once: the nearest of all there are.
fn nearest_f16(n: i128, negative_zero: bool) -> u16 {
    // Finite f16 are whole multiples of 2^-24, ascending with their bits.
    let exact =
        |bits: u16| ((f64::from(f16::from_bits(bits).to_f32()) * 2f64.powi(24)) as i128) << 24;
    let magnitude = n.abs();
    let sign = if n < 0 || (n == 0 && negative_zero) { 0x8000 } else { 0 };
    // The largest that is not above; 0x7c00 stands for 2^16, where the grid would go on.
    let value = |bits: u16| if bits == 0x7c00 { 1 << 64 } else { exact(bits) };
    let (mut low, mut high) = (0u16, 0x7c01u16);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if value(middle) <= magnitude { low = middle } else { high = middle }
    }
    if low == 0x7c00 {
        return sign | low;
    }
    let (under, over) = (magnitude - value(low), value(low + 1) - magnitude);
    sign | if under < over || (under == over && low % 2 == 0) { low } else { low + 1 }
}

/// a · b + c in whole numbers where all are finite, in f64 (which is right then) where one is not.
fn naive_fma(a: u16, b: u16, c: u16) -> u16 {
    let [x, y, z] = [a, b, c].map(|bits| f64::from(f16::from_bits(bits).to_f32()));
    let sum = x * y + z;
    if sum.is_nan() {
        return 0x7fff;
    }
    if sum.is_infinite() {
        return if sum < 0.0 { 0xfc00 } else { 0x7c00 };
    }
    let whole = |x: f64| (x * 2f64.powi(24)) as i128;
    let n = whole(x) * whole(y) + (whole(z) << 24);
    nearest_f16(n, sum.is_sign_negative())
}

#[test]
fn arithmetic_on_pairs_of_f16_rounds_once() {
    let [a, b, c] = [11, 12, 13].map(|seed| halves(seed, 200_000));
    let pairs = |f: fn(u16, u16, u16) -> u16| {
        move |a: u32, b: u32, c: u32| {
            let high = f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
            u32::from(f(a as u16, b as u16, c as u16)) | u32::from(high) << 16
        }
    };
    check("test_fma_f16x2", [&a, &b, &c], pairs(naive_fma));
    // a - b is 1 · a + (-b).
    check("test_subtract_f16x2", [&a, &b, &c], pairs(|a, b, _| naive_fma(a, 0x3c00, b ^ 0x8000)));
    // A tie that only what f64 loses can break: 1 + 2^-11 + 2^-48, to f16.
    let tie = [0x3c01, 0x1000, 0x3c00].map(|bits: u32| vec![bits]);
    check("test_fma_f16x2", [&tie[0], &tie[1], &tie[2]], pairs(naive_fma));
}

#[test]
fn integers() {
    let [a, b, c] = [21, 22, 23].map(|seed| random(seed, 5000));
    check("test_permute_bytes", [&a, &b, &c], |a, b, selector| {
        let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
        u32::from_le_bytes([0, 1, 2, 3].map(|i| {
            let nibble = selector >> (4 * i) & 15;
            let byte = bytes[(nibble & 7) as usize];
            if nibble < 8 { byte } else { (byte as i8 >> 7) as u8 }
        }))
    });
    check("test_select_bits_ea", [&a, &b, &c], |a, b, c| (a & b) | c);
    check("test_select_bits_1b", [&a, &b, &c], |a, b, c| {
        (0..32)
            .map(|i| 0x1b >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1)
            .rev()
            .fold(0, |word, bit: u32| word << 1 | bit)
    });
    let shifted: Vec<u32> = a
        .iter()
        .enumerate()
        .map(|(i, word)| word.checked_shr(i as u32 % 33).unwrap_or(0))
        .collect();
    check("test_leading_zeros", [&shifted, &b, &c], |a, _, _| a.leading_zeros());
    check("test_multiply_high", [&a, &b, &c], |a, b, _| {
        ((u64::from(a) * u64::from(b)) >> 32) as u32
    });
}

#[test]
fn floats() {
    // Any bits, so NaN, infinities and subnormals too; where NaN comes out, its bits are nobody's promise.
    let [a, b, c] = [31, 32, 33].map(|seed| random(seed, 20_000));
    let map = |f: fn(f32, f32, f32) -> f32| {
        move |a: u32, b: u32, c: u32| {
            f(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c)).to_bits()
        }
    };
    let number = |words: &[u32]| -> Vec<u32> {
        words
            .iter()
            .map(|&word| if f32::from_bits(word).is_nan() { 0x3f80_0000 } else { word })
            .collect()
    };
    check("test_absolute", [&a, &b, &c], map(|a, _, _| a.abs()));
    check("test_larger", [&a, &b, &c], map(|a, b, _| if b > a { b } else { a }));
    check("test_smaller", [&a, &b, &c], map(|a, b, _| if b < a { b } else { a }));
    let positive: Vec<u32> = number(&a).iter().map(|word| word & !(1 << 31)).collect();
    check("test_square_root", [&positive, &b, &c], map(|a, _, _| a.sqrt()));
    check("test_round_even", [&number(&a), &b, &c], map(|a, _, _| a.round_ties_even()));
    let finite: [Vec<u32>; 3] =
        [&a, &b, &c].map(|words| words.iter().map(|word| word & 0xbfff_ffff).collect());
    check("test_fma", [&finite[0], &finite[1], &finite[2]], map(f32::mul_add));
}

#[test]
fn lanes_exchange() {
    let own = random(41, 32);
    let from = random(42, 32);
    let small: Vec<u32> = own.iter().map(|word| word >> 8).collect();
    let results = run("test_exchange", [&small, &from, &small], (1, 32), 128);
    let votes = (0..32)
        .filter(|&lane| small[lane].is_multiple_of(3))
        .fold(0, |votes, lane| votes | 1u32 << lane);
    for lane in 0..32 {
        assert_eq!(results[lane], small[from[lane] as usize % 32]);
        assert_eq!(results[32 + lane], small[lane ^ 5]);
        assert_eq!(results[64 + lane], small[(lane + 1) % 32] + 1);
        assert_eq!(results[96 + lane], votes);
    }
}

#[test]
fn threads_and_blocks_come_in_the_order_asked_for() {
    let order = |order, seed| {
        let mut emulator = Emulator::new(Settings { order, seed, ..Settings::default() }).unwrap();
        let out = put(&mut emulator, &[0; 193]);
        let arguments = Arguments { a: out, b: out, c: out, out, count: 0, unused: 0 };
        launch(&mut emulator, "test_order", 3, 64, &arguments).unwrap();
        let words = get(&mut emulator, out, 193);
        assert_eq!(words[0], 192);
        words[1..].to_vec()
    };
    let ascending: Vec<u32> = (0..192).collect();
    assert_eq!(order(Order::Ascending, 0), ascending);
    assert_eq!(order(Order::Descending, 0), (0..192).rev().collect::<Vec<_>>());
    let shuffled = order(Order::Shuffled, 1);
    assert_eq!(shuffled, order(Order::Shuffled, 1));
    assert_ne!(shuffled, order(Order::Shuffled, 2));
    assert_ne!(shuffled, ascending);
    let mut sorted = shuffled.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ascending);
}

/// A matrix product as one would write it down: (16 × k) · (k × 8), sums in f32 in ascending k.
fn naive_product(a: &[f32], b: &[f32], d: &[f32]) -> Vec<f32> {
    let k = a.len() / 16;
    let mut d = d.to_vec();
    for (row, a) in a.chunks_exact(k).enumerate() {
        for column in 0..8 {
            for (i, &x) in a.iter().enumerate() {
                d[8 * row + column] = x.mul_add(b[8 * i + column], d[8 * row + column]);
            }
        }
    }
    d
}

/// Where PTX says that register `i` of d in a lane stands.
fn place_of_d(lane: usize, i: usize) -> usize {
    let (group, in_group) = (lane / 4, lane % 4);
    let row = if i < 2 { group } else { group + 8 };
    8 * row + 2 * in_group + i % 2
}

fn check_product(kernel: &'static str, words: [&[u32]; 3], wanted: &[f32]) {
    let result = run(kernel, words, (1, 32), 128);
    for lane in 0..32 {
        for i in 0..4 {
            let (given, wanted) = (result[4 * lane + i], wanted[place_of_d(lane, i)].to_bits());
            assert_eq!(given, wanted, "{kernel}, lane {lane}, register {i}");
        }
    }
}

fn scattered_d(d: &[f32]) -> Vec<u32> {
    (0..128).map(|at| d[place_of_d(at / 4, at % 4)].to_bits()).collect()
}

#[test]
fn products_of_f16() {
    let mut random = rewind_kernels_suite::Random::new(51);
    let mut halves =
        |len| -> Vec<f16> { random.normals(len, 3.0).into_iter().map(f16::from_f32).collect() };
    let (a, b) = (halves(256), halves(128));
    let d = random.normals(128, 1.0);
    let pair = |low: f16, high: f16| u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16;
    let mut words_of_a = Vec::new();
    let mut words_of_b = Vec::new();
    for lane in 0..32 {
        let (group, in_group) = (lane / 4, lane % 4);
        for (row, column) in [(0, 0), (8, 0), (0, 8), (8, 8)] {
            let at = 16 * (group + row) + 2 * in_group + column;
            words_of_a.push(pair(a[at], a[at + 1]));
        }
        for row in [0, 8] {
            let at = 8 * (2 * in_group + row) + group;
            words_of_b.push(pair(b[at], b[at + 8]));
        }
    }
    let floats = |halves: &[f16]| -> Vec<f32> { halves.iter().map(|x| x.to_f32()).collect() };
    let wanted = naive_product(&floats(&a), &floats(&b), &d);
    check_product("test_mma_f16", [&words_of_a, &words_of_b, &scattered_d(&d)], &wanted);
}

#[test]
fn products_of_tf32() {
    let mut random = rewind_kernels_suite::Random::new(52);
    let (a, b) = (random.normals(128, 3.0), random.normals(64, 3.0));
    let d = random.normals(128, 1.0);
    let mut words_of_a = Vec::new();
    let mut words_of_b = Vec::new();
    for lane in 0..32 {
        let (group, in_group) = (lane / 4, lane % 4);
        for (row, column) in [(0, 0), (8, 0), (0, 4), (8, 4)] {
            words_of_a.push(a[8 * (group + row) + in_group + column].to_bits());
        }
        for row in [0, 4] {
            words_of_b.push(b[8 * (in_group + row) + group].to_bits());
        }
    }
    // The operands have all their 24 bits; the product must look at 11.
    let cut = |x: &[f32]| -> Vec<f32> {
        x.iter().map(|x| f32::from_bits(x.to_bits() & !0x1fff)).collect()
    };
    let wanted = naive_product(&cut(&a), &cut(&b), &d);
    check_product("test_mma_tf32", [&words_of_a, &words_of_b, &scattered_d(&d)], &wanted);
}
