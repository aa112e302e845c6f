//! Writes GGUF files.

/// A value of a key.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    U32(u32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Innermost first, as the file has them.
    pub(crate) dimensions: Vec<u64>,
    pub(crate) ty: u32,
    pub(crate) data: Vec<u8>,
}

/// A file in the making. Fields are open, so that tests can break them.
#[derive(Clone, Debug)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) keys: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignment: usize,
}

impl Default for Gguf {
    fn default() -> Self {
        Self { magic: *b"GGUF", version: 3, keys: vec![], tensors: vec![], alignment: 32 }
    }
}

impl Gguf {
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.remove(key);
        self.keys.push((key.to_owned(), value));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.keys.retain(|(k, _)| k != key);
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            string(&mut out, key);
            write_value(&mut out, value);
        }
        let mut offset = 0_usize;
        for tensor in &self.tensors {
            string(&mut out, &tensor.name);
            out.extend((tensor.dimensions.len() as u32).to_le_bytes());
            for size in &tensor.dimensions {
                out.extend(size.to_le_bytes());
            }
            out.extend(tensor.ty.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.data.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    let tag = |out: &mut Vec<u8>, ty: u32| out.extend(ty.to_le_bytes());
    let array = |out: &mut Vec<u8>, ty: u32, len: usize| {
        out.extend(9_u32.to_le_bytes());
        out.extend(ty.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Value::U32(v) => {
            tag(out, 4);
            out.extend(v.to_le_bytes());
        }
        Value::U64(v) => {
            tag(out, 10);
            out.extend(v.to_le_bytes());
        }
        Value::F32(v) => {
            tag(out, 6);
            out.extend(v.to_le_bytes());
        }
        Value::Bool(v) => {
            tag(out, 7);
            out.push(u8::from(*v));
        }
        Value::Str(v) => {
            tag(out, 8);
            string(out, v);
        }
        Value::Strs(v) => {
            array(out, 8, v.len());
            v.iter().for_each(|text| string(out, text));
        }
        Value::I32s(v) => {
            array(out, 5, v.len());
            v.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Value::F32s(v) => {
            array(out, 6, v.len());
            v.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
    }
}
