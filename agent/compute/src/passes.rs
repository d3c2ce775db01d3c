//! Owns a model's way through the device: forward through a range of layers, and backward for gradients.
//! Must never know files, data sets, optimisers, or who holds the layers before and after.
//!
//! The layers are a chain of segments. Without recomputation there is one, and what autodiff recorded of it is kept from
//! the forward to the backward pass. With recomputation every layer is one: the forward pass keeps each layer's input rows
//! alone, and the backward pass computes the layer again before it goes back through it.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use skein_engine::source::TensorSource;

use crate::checkpoint::read_weights;
use crate::data::Batch;
use crate::decoder::{Decoder, Places, Weights, turned, upload};
use crate::train::TrainError;
use crate::trainee::{Role, TensorSpec, Trainee};

/// A model to be trained, or some of its layers, and where it is.
pub struct Model {
    /// What learns.
    pub trainee: Trainee,
    /// What does not, on the device.
    frozen: Weights,
    device: Device,
}

impl Model {
    /// Puts what is frozen on the device.
    ///
    /// # Errors
    /// [`TrainError`] when it cannot be read.
    pub fn load(trainee: Trainee, source: &dyn TensorSource, device: &Device) -> Result<Self, TrainError> {
        let device = device.clone().without_autodiff();
        let mut frozen = Weights::new();
        for tensor in trainee.frozen() {
            let values = read_weights(source, &tensor.name)?;
            let role = Role::of(&tensor.name, tensor.rows);
            let (rows, columns) = (tensor.rows as usize, tensor.columns as usize);
            frozen.insert(tensor.name, upload(role, rows, columns, values, &device));
        }
        Ok(Self { trainee, frozen, device })
    }

    /// The tensors that learn, on the device.
    pub(crate) fn upload(&self, weights: &[Vec<f32>]) -> Vec<Tensor<2>> {
        let specs = self.trainee.tensors();
        debug_assert_eq!(specs.len(), weights.len(), "checked when the file was read");
        specs.iter().zip(weights).map(|(spec, values)| self.put(spec, values.clone())).collect()
    }

    /// What files have of a tensor that learns, be it its weights or its moments, on the device.
    pub(crate) fn put(&self, spec: &TensorSpec, values: Vec<f32>) -> Tensor<2> {
        upload(spec.role, spec.rows, spec.columns, values, &self.device)
    }

    /// Rows of activations or of their gradients, `[values / width, width]`, on the device.
    pub(crate) fn rows(&self, values: Vec<f32>) -> Tensor<2> {
        let width = self.trainee.config().width as usize;
        let count = values.len() / width;
        Tensor::from_data(TensorData::new(values, [count, width]), &self.device)
    }
}

/// How to go through a model's layers, for sequences of one length.
pub(crate) struct Passes {
    segments: Vec<Segment>,
    recompute: bool,
    places: Places,
}

struct Segment {
    layers: Range<u32>,
    /// Places of its tensors among those that learn.
    learning: Vec<usize>,
}

/// A micro-batch, and what it passes through.
#[derive(Clone, Copy)]
pub(crate) struct Micro<'a> {
    pub(crate) model: &'a Model,
    /// What learns, as [`Model::upload`] gives it.
    pub(crate) weights: &'a [Tensor<2>],
    pub(crate) batch: &'a Batch,
}

/// What the forward pass of one micro-batch leaves for its backward pass.
pub(crate) struct Kept(Way);

enum Way {
    /// All that autodiff recorded, where there is one segment.
    Recorded(Box<Recorded>),
    /// The input rows of every segment.
    Inputs(Vec<Input>),
}

/// Rows before a segment; none before the first one of the model, which has the batch's tokens.
type Input = Option<Tensor<2>>;

/// A segment's forward pass whose gradients can be asked for.
struct Recorded {
    input: Input,
    learning: Vec<Tensor<2>>,
    /// Rows, or the loss as `[1, 1]`.
    output: Tensor<2>,
}

/// Gradients of the tensors that learn, in their order; those of several micro-batches add up.
#[derive(Default)]
pub(crate) struct Gradients(BTreeMap<usize, Tensor<2>>);

impl Gradients {
    fn add(&mut self, place: usize, more: Tensor<2>) {
        let sum = match self.0.remove(&place) {
            None => more,
            Some(sum) => sum + more,
        };
        self.0.insert(place, sum);
    }

    /// Sum of the squares of all elements.
    ///
    /// # Errors
    /// [`TrainError::Device`].
    pub(crate) fn squares(&self) -> Result<f64, TrainError> {
        let squares: Vec<Tensor<1>> =
            self.0.values().map(|gradient| gradient.clone().square().sum()).collect();
        if squares.is_empty() {
            return Ok(0.0);
        }
        Ok(read(Tensor::cat(squares, 0))?.into_iter().map(f64::from).sum())
    }

    /// One gradient for each of so many tensors.
    ///
    /// # Errors
    /// [`TrainError::Device`] if there is none for one of them.
    pub(crate) fn whole(self, tensors: usize) -> Result<Vec<Tensor<2>>, TrainError> {
        let found: Vec<Tensor<2>> = self.0.into_values().collect();
        if found.len() == tensors { Ok(found) } else { Err(broken("a tensor got no gradient")) }
    }
}

impl Passes {
    /// For all layers that `model` has, and sequences of `context` tokens.
    pub(crate) fn new(model: &Model, context: usize, recompute: bool) -> Self {
        let layers = model.trainee.layers();
        let ranges: Vec<Range<u32>> =
            if recompute { layers.map(|layer| layer..layer + 1).collect() } else { vec![layers] };
        let segment = |layers: Range<u32>| {
            let specs = model.trainee.tensors().iter().enumerate();
            let needed = specs.filter(|(_, spec)| model.trainee.needs(&spec.name, &layers));
            Segment { learning: needed.map(|(place, _)| place).collect(), layers }
        };
        let places = Places::new(model.trainee.config(), context, &model.device);
        Self { segments: ranges.into_iter().map(segment).collect(), recompute, places }
    }

    /// The rows after the last of the model's layers, without gradients. `rows` are those before the first, `[sequences ·
    /// context, width]`, unless that is the model's first.
    ///
    /// # Errors
    /// [`TrainError::Device`].
    pub(crate) fn rows(
        &self,
        micro: Micro<'_>,
        mut rows: Option<Tensor<2>>,
    ) -> Result<Tensor<2>, TrainError> {
        for segment in &self.segments {
            rows = Some(self.plain(micro, segment, rows)?);
        }
        rows.ok_or_else(|| broken("there is no layer"))
    }

    /// The sum of the losses of a batch's tokens that count, at least one, without gradients. For the model's last layers.
    ///
    /// # Errors
    /// [`TrainError::Device`].
    pub(crate) fn loss(&self, micro: Micro<'_>, rows: Option<Tensor<2>>) -> Result<f32, TrainError> {
        let segment = self.segments.last().ok_or_else(|| broken("there is no layer"))?;
        let rows = self.rows(micro, rows)?;
        let decoder = segment.decoder(micro.model, &segment.of(micro.weights))?;
        scalar(
            decoder
                .loss(rows, micro.batch, &micro.model.device)
                .ok_or_else(|| broken("the head is missing"))?,
        )
    }

    /// As [`Self::rows`], and what [`Self::backward`] needs later.
    ///
    /// # Errors
    /// [`TrainError::Device`].
    pub(crate) fn forward(
        &self,
        micro: Micro<'_>,
        rows: Option<Tensor<2>>,
    ) -> Result<(Tensor<2>, Kept), TrainError> {
        if let ([segment], false) = (self.segments.as_slice(), self.recompute) {
            let recorded = self.record(micro, segment, rows, None)?;
            return Ok((recorded.output.clone().inner(), Kept(Way::Recorded(Box::new(recorded)))));
        }
        let (rows, inputs) = self.inputs(micro, &self.segments, rows)?;
        Ok((rows.ok_or_else(|| broken("there is no layer"))?, Kept(Way::Inputs(inputs))))
    }

    /// Adds the gradients of a micro-batch to `gradients`, given that of the rows that [`Self::forward`] gave. Returns that
    /// of the rows that it was given.
    ///
    /// # Errors
    /// [`TrainError::Device`].
    pub(crate) fn backward(
        &self,
        micro: Micro<'_>,
        kept: Kept,
        upstream: Tensor<2>,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor<2>>, TrainError> {
        match (kept.0, self.segments.as_slice()) {
            (Way::Recorded(recorded), [segment]) => {
                recorded.backward(&segment.learning, Some(upstream), gradients)
            }
            (Way::Recorded(_), _) => Err(broken("several segments were recorded as one")),
            (Way::Inputs(inputs), segments) => self.back(micro, segments, inputs, Some(upstream), gradients),
        }
    }

    /// Forward and backward through the model's last layers: the loss of a micro-batch, of which at least one token counts,
    /// as its share of the mean over `counted` tokens; and the gradient of the rows that were given. The others are added
    /// to `gradients`.
    ///
    /// # Errors
    /// [`TrainError::Device`].
    pub(crate) fn learn(
        &self,
        micro: Micro<'_>,
        rows: Option<Tensor<2>>,
        counted: usize,
        gradients: &mut Gradients,
    ) -> Result<(f32, Option<Tensor<2>>), TrainError> {
        let (last, others) = self.segments.split_last().ok_or_else(|| broken("there is no layer"))?;
        let (rows, inputs) = self.inputs(micro, others, rows)?;
        let recorded = self.record(micro, last, rows, Some(counted))?;
        let loss = recorded.output.clone().inner();
        let upstream = recorded.backward(&last.learning, None, gradients)?;
        let upstream = self.back(micro, others, inputs, upstream, gradients)?;
        Ok((scalar(loss.reshape([1]))?, upstream))
    }

    /// Backward through segments that are computed again, given the gradient of the rows after the last.
    fn back(
        &self,
        micro: Micro<'_>,
        segments: &[Segment],
        inputs: Vec<Input>,
        mut upstream: Option<Tensor<2>>,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor<2>>, TrainError> {
        for (segment, input) in segments.iter().zip(inputs).rev() {
            let recorded = self.record(micro, segment, input, None)?;
            upstream = recorded.backward(&segment.learning, upstream, gradients)?;
        }
        Ok(upstream)
    }

    /// The rows after the last segment, and the input rows of each.
    fn inputs(
        &self,
        micro: Micro<'_>,
        segments: &[Segment],
        mut rows: Input,
    ) -> Result<(Input, Vec<Input>), TrainError> {
        let mut inputs = Vec::with_capacity(segments.len());
        for segment in segments {
            inputs.push(rows.clone());
            rows = Some(self.plain(micro, segment, rows)?);
        }
        Ok((rows, inputs))
    }

    fn plain(
        &self,
        micro: Micro<'_>,
        segment: &Segment,
        rows: Option<Tensor<2>>,
    ) -> Result<Tensor<2>, TrainError> {
        let decoder = segment.decoder(micro.model, &segment.of(micro.weights))?;
        let rows = rows.or_else(|| decoder.embed(micro.batch, &micro.model.device));
        let rows = rows.ok_or_else(|| broken("the first layers' rows are missing"))?;
        Ok(decoder.forward(rows, micro.batch.sequences, &self.places))
    }

    /// One segment with autodiff, up to the loss where the number of tokens that share it is given.
    fn record(
        &self,
        micro: Micro<'_>,
        segment: &Segment,
        rows: Option<Tensor<2>>,
        counted: Option<usize>,
    ) -> Result<Recorded, TrainError> {
        let tracked = |tensor: Tensor<2>| tensor.autodiff().require_grad();
        let learning: Vec<Tensor<2>> = segment.of(micro.weights).into_iter().map(tracked).collect();
        let decoder = segment.decoder(micro.model, &learning)?;
        let device = micro.model.device.clone().autodiff();
        let input = rows.map(tracked);
        let rows = input.clone().or_else(|| decoder.embed(micro.batch, &device));
        let rows = rows.ok_or_else(|| broken("the first layers' rows are missing"))?;
        let mut output = decoder.forward(rows, micro.batch.sequences, &self.places);
        if let Some(counted) = counted {
            let loss =
                decoder.loss(output, micro.batch, &device).ok_or_else(|| broken("the head is missing"))?;
            output = loss.div_scalar(counted as f32).reshape([1, 1]);
        }
        Ok(Recorded { input, learning, output })
    }
}

impl Segment {
    fn of(&self, weights: &[Tensor<2>]) -> Vec<Tensor<2>> {
        self.learning.iter().map(|place| weights[*place].clone()).collect()
    }

    /// The decoder of its layers, given its tensors that learn.
    fn decoder<'a>(&self, model: &'a Model, learning: &[Tensor<2>]) -> Result<Decoder<'a>, TrainError> {
        let specs = model.trainee.tensors();
        let names = self.learning.iter().map(|place| specs[*place].name.as_str());
        let learning: BTreeMap<&str, &Tensor<2>> = names.zip(learning).collect();
        let find = |name: &str| learning.get(name).copied().or_else(|| model.frozen.get(name)).cloned();
        Decoder::new(&model.trainee, self.layers.clone(), find)
            .ok_or_else(|| broken("the model does not hold every tensor"))
    }
}

impl Recorded {
    /// Adds the gradients of the tensors at these places, and returns that of the input rows. `upstream` is that of the
    /// output; a loss has none.
    fn backward(
        self,
        places: &[usize],
        upstream: Option<Tensor<2>>,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor<2>>, TrainError> {
        let Self { input, learning, output } = self;
        // The slope of this sum by the output is `upstream`, and by all before it what the chain rule says.
        let slope = match upstream {
            Some(upstream) => (output * upstream.autodiff()).sum(),
            None => output.sum(),
        };
        let mut found = slope.backward();
        let mut take = |tensor: &Tensor<2>| {
            tensor.grad_remove(&mut found).ok_or_else(|| broken("a tensor got no gradient"))
        };
        for (place, tensor) in places.iter().zip(&learning) {
            gradients.add(*place, take(tensor)?);
        }
        input.map(|input| take(&input)).transpose()
    }
}

fn broken(what: &str) -> TrainError {
    TrainError::Device(what.to_owned())
}

/// Reads one number back from the device.
fn scalar(tensor: Tensor<1>) -> Result<f32, TrainError> {
    read(tensor)?.first().copied().ok_or_else(|| broken("an empty tensor came back"))
}

/// Reads a tensor back from the device, as files have it.
pub(crate) fn download(tensor: Tensor<2>, spec: &TensorSpec) -> Result<Vec<f32>, TrainError> {
    let values = read(tensor)?;
    Ok(match spec.role {
        Role::Matrix => turned(&values, spec.columns, spec.rows),
        Role::Vector | Role::Table => values,
    })
}

/// Reads a tensor back from the device, row-major.
pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, TrainError> {
    crate::device::read(tensor).map_err(TrainError::Device)
}
