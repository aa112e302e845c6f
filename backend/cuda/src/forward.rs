//! One pass as a sequence of launches: from tokens to logits and answers, for any mixture of rows.
//!
//! Keys and values of all rows are written before any row of that layer attends: so a verification
//! row sees the entries that its own pass has just overwritten. Nothing here waits for the device or
//! looks at values, so that the same calls can be recorded as a graph.

use bytemuck::Pod;
use rewind_kernels::arguments::{
    Address, AttendArguments, ChooseArguments, CopyPagesArguments, EPILOGUE_ADD, EPILOGUE_STORE,
    EPILOGUE_SWIGLU, EmbedArguments, FinishArguments, HeadArguments, LogprobsArguments, Matrix,
    NormArguments, ProductArguments, RotateArguments,
};
use rewind_kernels::geometry::{self, Geometry};
use rewind_kernels::{Device, DeviceError, Launch, Mark, product, sampling};

use crate::buffers::{ATTEND_ROWS, Buffers, HEAD_ROWS};
use crate::model::{Layer, Layers, Weights, takes_half};
use crate::staging::{Block, Shape};
use rewind_checkpoint::ModelSpec;

/// What a pass runs over.
pub(crate) struct Forward<'a, D: Device> {
    pub(crate) device: &'a mut D,
    pub(crate) spec: &'a ModelSpec,
    pub(crate) weights: &'a Weights,
    pub(crate) buffers: &'a Buffers,
    pub(crate) block: Block,
    pub(crate) shape: Shape,
    /// Rows of the generated class, padding included; the prompt's follow.
    pub(crate) generated: usize,
    /// Splits that the furthest generated row attends to, at most.
    pub(crate) splits: usize,
    /// Where biases, seen tokens, bans and masks are.
    pub(crate) lists: Address,
    /// Whether a row goes through the whole sampling contract.
    pub(crate) general: bool,
    /// Whether a row wants log-probabilities.
    pub(crate) logprobs: bool,
}

impl<D: Device> Forward<'_, D> {
    /// Copies pages.
    pub(crate) fn copies(&mut self) -> Result<(), DeviceError> {
        let arguments = CopyPagesArguments {
            cache: self.buffers.cache,
            copies: self.block.copies,
            count: self.shape.copies as u32,
            unused: 0,
        };
        self.launch(geometry::copy_pages(&self.buffers.cache), &arguments)
    }

    /// Runs all layers; the residual stream stays. `tap(device, layers)` is called before the first
    /// layer and after each.
    pub(crate) fn layers(
        &mut self,
        mut tap: impl FnMut(&mut D, usize) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let arguments = EmbedArguments {
            matrix: self.weights.embedding,
            rows: self.block.rows,
            last: self.buffers.last,
            stream: self.buffers.stream,
            count: self.shape.rows as u32,
            stride: self.buffers.stream_stride as u32,
        };
        self.launch(product::embed(self.shape.rows as u32), &arguments)?;
        tap(self.device, 0)?;
        let weights = self.weights;
        match &weights.layers {
            Layers::Device(layers) => {
                for (number, layer) in layers.iter().enumerate() {
                    self.layer(number, layer)?;
                    tap(self.device, number + 1)?;
                }
            }
            Layers::Host { layers, staging } => {
                // Each staging place: when its layer has arrived, and when it may be overwritten.
                let mut arrived = [None::<Mark>; 2];
                let mut free = [Some(self.device.mark()?); 2];
                for number in 0..=layers.len() {
                    if let Some(next) = layers.get(number) {
                        let side = number % 2;
                        let mark = self.device.prefetch(next.memory, staging[side], free[side])?;
                        arrived[side] = Some(mark);
                    }
                    let Some(number) = number.checked_sub(1) else { continue };
                    let side = number % 2;
                    if let Some(mark) = arrived[side] {
                        self.device.wait_for(mark)?;
                    }
                    self.layer(number, &layers[number].at(staging[side]))?;
                    free[side] = Some(self.device.mark()?);
                    tap(self.device, number + 1)?;
                }
            }
        }
        Ok(())
    }

    fn layer(&mut self, number: usize, layer: &Layer) -> Result<(), DeviceError> {
        let Buffers { normed, attended, gated, qkv, stream, stream_stride, .. } = *self.buffers;
        let spec = self.spec;
        let qkv_stride = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;

        let half = takes_half(&layer.qkv);
        self.norm(layer.vectors.attention_norm, half)?;
        let x = (normed.of(half), normed.stride);
        self.product(&layer.qkv, x, qkv, qkv_stride, EPILOGUE_STORE)?;
        self.rotate(number, layer, qkv_stride)?;
        let half = takes_half(&layer.output);
        self.attend(number, half)?;
        let x = (attended.of(half), attended.stride);
        self.product(&layer.output, x, stream, stream_stride, EPILOGUE_ADD)?;

        // The same for the two products: loading has seen to it.
        let half = takes_half(&layer.gate_up);
        self.norm(layer.vectors.feed_forward_norm, half)?;
        let x = (normed.of(half), normed.stride);
        self.product(&layer.gate_up, x, gated.of(half), gated.stride, EPILOGUE_SWIGLU)?;
        let x = (gated.of(half), gated.stride);
        self.product(&layer.down, x, stream, stream_stride, EPILOGUE_ADD)
    }

    fn norm(&mut self, weight: Address, half: bool) -> Result<(), DeviceError> {
        let normed = self.buffers.normed;
        let arguments = NormArguments {
            stream: self.buffers.stream,
            index: Address::NULL,
            weight,
            out: normed.of(half),
            count: self.shape.rows as u32,
            cols: self.spec.hidden_size as u32,
            stream_stride: self.buffers.stream_stride as u32,
            out_stride: normed.stride as u32,
            epsilon: self.spec.rms_epsilon,
            unused: 0,
        };
        self.launch(geometry::norm(half, arguments.count), &arguments)
    }

    fn product(
        &mut self,
        matrix: &Matrix,
        (x, x_stride): (Address, usize),
        out: Address,
        out_stride: usize,
        epilogue: u32,
    ) -> Result<(), DeviceError> {
        let arguments = ProductArguments {
            matrix: *matrix,
            x,
            out,
            count: self.shape.rows as u32,
            x_stride: x_stride as u32,
            out_stride: out_stride as u32,
            epilogue,
        };
        self.launch(product::product(matrix, arguments.count), &arguments)
    }

    fn rotate(&mut self, number: usize, layer: &Layer, stride: usize) -> Result<(), DeviceError> {
        let arguments = RotateArguments {
            qkv: self.buffers.qkv,
            bias: layer.vectors.qkv_bias,
            query_norm: layer.vectors.query_norm,
            key_norm: layer.vectors.key_norm,
            cosines: self.buffers.cosines,
            sines: self.buffers.sines,
            rows: self.block.rows,
            pages: self.block.pages,
            queries: self.buffers.queries,
            cache: self.buffers.cache,
            layer: number as u32,
            count: self.shape.rows as u32,
            heads: self.spec.heads as u32,
            head_dim: self.spec.head_dim as u32,
            qkv_stride: stride as u32,
            epsilon: self.spec.rms_epsilon,
        };
        let (heads, count) = (arguments.heads, arguments.count);
        self.launch(geometry::rotate(&self.buffers.cache, heads, count), &arguments)
    }

    fn attend(&mut self, layer: usize, half: bool) -> Result<(), DeviceError> {
        let Buffers { attended, cache, queries, partials, splits, .. } = *self.buffers;
        let spec = self.spec;
        let query_row = spec.heads * cache.dim as usize * size_of::<f32>();
        let row = size_of::<rewind_kernels::arguments::Row>();
        let mut arguments = AttendArguments {
            queries,
            rows: self.block.rows,
            pages: self.block.pages,
            cache,
            tiles: Address::NULL,
            partials,
            out: attended.of(half),
            layer: layer as u32,
            count: 0,
            heads: spec.heads as u32,
            head_dim: spec.head_dim as u32,
            splits: splits as u32,
            out_stride: attended.stride as u32,
            out_f16: u32::from(half),
            scale: 1.0 / (spec.head_dim as f32).sqrt(),
        };
        for first in (0..self.generated).step_by(ATTEND_ROWS) {
            arguments.queries = queries.offset(first * query_row);
            arguments.rows = self.block.rows.offset(first * row);
            arguments.out = attended.row(half, first);
            arguments.count = ATTEND_ROWS.min(self.generated - first) as u32;
            let (heads, count) = (arguments.heads, arguments.count);
            let splits = self.splits as u32;
            self.launch(geometry::attend(&cache, heads, splits, count), &arguments)?;
            self.launch(geometry::merge(heads, arguments.head_dim, count), &arguments)?;
        }
        if self.shape.tiles > 0 {
            arguments.queries = queries;
            arguments.rows = self.block.rows;
            arguments.out = attended.of(half);
            arguments.tiles = self.block.tiles;
            arguments.count = self.shape.tiles as u32;
            let tiles = arguments.count;
            self.launch(geometry::attend_prompt(&cache, arguments.heads, tiles), &arguments)?;
        }
        Ok(())
    }

    /// Runs the LM head, and everything after it, over up to [`HEAD_ROWS`] rows of the index, from
    /// `first` on. Logits and tiles of these rows stay until the next call.
    pub(crate) fn head(&mut self, first: usize) -> Result<(), DeviceError> {
        use rewind_kernels::arguments::{Answer, Choice, LOGPROB_ENTRIES, LogprobEntry};
        let buffers = self.buffers;
        let half = self.weights.half_head;
        let (spec, stride) = (self.spec, buffers.logits_stride as u32);
        let count = HEAD_ROWS.min(self.shape.heads - first) as u32;
        let choices = self.block.choices.offset(first * size_of::<Choice>());
        let answers = buffers.answers.offset(first * size_of::<Answer>());
        let vocabulary = spec.vocab_size as u32;

        let x = buffers.head_rows;
        let arguments = NormArguments {
            stream: buffers.stream,
            index: self.block.index.offset(first * size_of::<u32>()),
            weight: self.weights.final_norm,
            out: x.of(half),
            count,
            cols: spec.hidden_size as u32,
            stream_stride: buffers.stream_stride as u32,
            out_stride: x.stride as u32,
            epsilon: spec.rms_epsilon,
            unused: 0,
        };
        self.launch(geometry::norm(half, count), &arguments)?;
        let arguments = HeadArguments {
            matrix: self.weights.head,
            x: x.of(half),
            logits: buffers.logits,
            tiles: buffers.tiles,
            choices,
            count,
            x_stride: x.stride as u32,
            logits_stride: stride,
            tile_stride: buffers.logit_tiles as u32,
        };
        self.launch(sampling::head(&arguments.matrix, count), &arguments)?;
        if self.general {
            let arguments = ChooseArguments {
                logits: buffers.logits,
                processed: buffers.processed,
                choices,
                lists: self.lists,
                answers,
                count,
                vocabulary,
                logits_stride: stride,
                unused: 0,
            };
            self.launch(sampling::choose(count), &arguments)?;
        }
        let arguments = FinishArguments {
            logits: buffers.logits,
            tiles: buffers.tiles,
            choices,
            answers,
            last: buffers.last,
            count,
            vocabulary,
            logits_stride: stride,
            tile_stride: buffers.logit_tiles as u32,
        };
        self.launch(sampling::finish(count), &arguments)?;
        if self.logprobs {
            let entry = LOGPROB_ENTRIES as usize * size_of::<LogprobEntry>();
            let arguments = LogprobsArguments {
                logits: buffers.logits,
                choices,
                answers,
                entries: buffers.entries.offset(first * entry),
                count,
                vocabulary,
                logits_stride: stride,
                unused: 0,
            };
            self.launch(sampling::logprobs(count), &arguments)?;
        }
        Ok(())
    }

    fn launch<A: Pod>(&mut self, geometry: Geometry, arguments: &A) -> Result<(), DeviceError> {
        let Geometry { kernel, grid, threads, shared } = geometry;
        let arguments = bytemuck::bytes_of(arguments);
        self.device.launch(Launch { kernel, grid, threads, shared, arguments })
    }
}
