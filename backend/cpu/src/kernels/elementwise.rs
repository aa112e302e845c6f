//! The small operations between products: norms, quantization of activations, rotation, SwiGLU.

use crate::arch::{BLOCK, Kernel, LANES, Simd, vectors};
use crate::exp::exp;
use crate::order::QUANTIZE_FLOOR;
use crate::rows::ActivationBlock;

/// RMS norm: `out = x / √(mean(x²) + ε) · weight`.
///
/// The squares are summed in the order of [`crate::order::square_sum`].
#[derive(Debug)]
pub(crate) struct Norm<'a> {
    /// A row with its padding, whole blocks.
    pub(crate) x: &'a [f32],
    /// As long as the row without padding.
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
    /// As long as `weight`.
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut lanes = [s.splat(0.0); 2];
        for (i, x) in vectors(self.x).iter().enumerate() {
            let x = s.load(x);
            lanes[i % 2] = s.fma(x, x, lanes[i % 2]);
        }
        let scale = inverse_rms(s.sum(s.add(lanes[0], lanes[1])), self.weight.len(), self.epsilon);
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * scale * weight;
        }
    }
}

/// `1 / √(mean + ε)` from a sum of squares.
#[inline(always)]
fn inverse_rms(squares: f32, len: usize, epsilon: f32) -> f32 {
    1.0 / (squares / len as f32 + epsilon).sqrt()
}

/// Quantizes a row of activations, or whole blocks of one, see [`crate::order::quantize_block`].
#[derive(Debug)]
pub(crate) struct Quantize<'a> {
    /// What is missing to whole blocks counts as zeros.
    pub(crate) x: &'a [f32],
    pub(crate) out: &'a mut [ActivationBlock],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (blocks, rest) = self.x.as_chunks::<BLOCK>();
        for (x, out) in blocks.iter().zip(&mut *self.out) {
            quantize(s, x, out);
        }
        if !rest.is_empty() {
            let mut x = [0.0; BLOCK];
            x[..rest.len()].copy_from_slice(rest);
            quantize(s, &x, &mut self.out[blocks.len()]);
        }
    }
}

#[inline(always)]
fn quantize<S: Simd>(s: S, x: &[f32; BLOCK], out: &mut ActivationBlock) {
    let mut v = [s.splat(0.0); BLOCK / LANES];
    let mut largest = s.splat(0.0);
    let mut poison = s.splat(0.0);
    for (i, x) in vectors(x).iter().enumerate() {
        v[i] = s.load(x);
        largest = s.max(s.abs(v[i]), largest);
        // 0 · x is NaN for NaN and infinities only.
        poison = s.fma(v[i], s.splat(0.0), poison);
    }
    let largest = s.largest(largest);
    let (scale, inverse) = if s.sum(poison).is_nan() {
        (f32::NAN, 0.0)
    } else if largest < QUANTIZE_FLOOR {
        (0.0, 0.0)
    } else {
        (largest / 127.0, 127.0 / largest)
    };
    if scale > 0.0 {
        for v in &mut v {
            *v = s.mul(*v, s.splat(inverse));
        }
        out.codes = s.narrow(v);
    } else {
        out.codes = [0; BLOCK];
    }
    out.sum = out.codes.iter().map(|&code| i32::from(code)).sum();
    out.scale = scale;
}

/// `gate = gate / (1 + e^−gate) · up`.
#[derive(Debug)]
pub(crate) struct SwiGlu<'a> {
    pub(crate) gate: &'a mut [f32],
    /// As long as `gate`.
    pub(crate) up: &'a [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (gates, rest) = self.gate.as_chunks_mut::<LANES>();
        let ups = vectors(self.up);
        for (gate, up) in gates.iter_mut().zip(ups) {
            swiglu(s, gate, up);
        }
        if !rest.is_empty() {
            let (mut gate, mut up) = ([0.0; LANES], [0.0; LANES]);
            gate[..rest.len()].copy_from_slice(rest);
            up[..rest.len()].copy_from_slice(&self.up[ups.len() * LANES..]);
            swiglu(s, &mut gate, &up);
            rest.copy_from_slice(&gate[..rest.len()]);
        }
    }
}

#[inline(always)]
fn swiglu<S: Simd>(s: S, gate: &mut [f32; LANES], up: &[f32; LANES]) {
    let g = s.load(gate);
    let e = exp(s, s.sub(s.splat(0.0), g));
    let silu = s.div(g, s.add(s.splat(1.0), e));
    s.store(s.mul(silu, s.load(up)), gate);
}

/// What happens to a head of queries, keys or values between projection and attention, in place: bias,
/// norm, rotation. Empty slices switch a step off.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) x: &'a mut [f32],
    /// As long as `x`, or empty.
    pub(crate) bias: &'a [f32],
    /// Weights of the RMS norm, as long as `x`, or empty.
    pub(crate) norm: &'a [f32],
    pub(crate) epsilon: f32,
    /// Cosine and sine of the angle of each pair at this position, or empty.
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (x, bias) in self.x.iter_mut().zip(self.bias) {
            *x += bias;
        }
        if !self.norm.is_empty() {
            norm_head(self.x, self.norm, self.epsilon);
        }
        if !self.cos.is_empty() {
            rotate(self.x, self.cos, self.sin);
        }
    }
}

/// RMS norm of one head in place, as [`Norm`] does it with a padded row.
#[inline(always)]
fn norm_head(head: &mut [f32], weight: &[f32], epsilon: f32) {
    let mut lanes = [0.0_f32; 2 * LANES];
    for (i, x) in head.iter().enumerate() {
        lanes[i % (2 * LANES)] = x.mul_add(*x, lanes[i % (2 * LANES)]);
    }
    let squares = crate::order::tree(std::array::from_fn(|j| lanes[j] + lanes[j + LANES]));
    let scale = inverse_rms(squares, head.len(), epsilon);
    for (x, weight) in head.iter_mut().zip(weight) {
        *x = *x * scale * weight;
    }
}

/// Rotates the pairs (i, i + half) of one head by their angles.
#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        (*a, *b) = (a.mul_add(*cos, -(*b * sin)), b.mul_add(*cos, *a * sin));
    }
}
