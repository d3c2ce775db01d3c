//! Models by the digests of their pieces: cut, encoded, read back; and what strangers may send instead.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod formats_tiny;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use formats_tiny::{ARCHITECTURES, model};
use proptest::prelude::*;
use skein_engine::dtype::Dtype;
use skein_engine::gguf::{Gguf, Value};
use skein_engine::limits::{MANIFEST_BYTES_MAX, PIECE_BYTES};
use skein_engine::manifest::{BuildError, Digest, Entry, Manifest, PieceSource};
use skein_engine::source::{TensorInfo, TensorSource};

/// Pieces by digest, as a store holds them.
type Store = BTreeMap<Digest, Vec<u8>>;

fn source(bytes: Vec<u8>) -> Gguf<Cursor<Vec<u8>>> {
    let length = bytes.len() as u64;
    Gguf::from_reader(Cursor::new(bytes), length).unwrap()
}

fn build(source: &dyn TensorSource, vocabulary: &[u8]) -> (Manifest, Store) {
    let mut store = Store::new();
    let mut put = |piece: &[u8]| {
        let digest = *blake3::hash(piece).as_bytes();
        store.insert(digest, piece.to_vec());
        Ok(digest)
    };
    let mut steps = Vec::new();
    let manifest =
        Manifest::build(source, vocabulary, &mut put, &mut |done, of| steps.push((done, of))).unwrap();
    let (done, of) = *steps.last().unwrap();
    assert_eq!(done, of, "progress ends at the end");
    assert!(steps.is_sorted());
    (manifest, store)
}

fn write(folder: &Path, store: &Store) {
    for (digest, piece) in store {
        std::fs::write(folder.join(blake3::Hash::from(*digest).to_hex().as_str()), piece).unwrap();
    }
}

fn piece_source(manifest: Manifest, folder: &Path) -> PieceSource {
    let folder = folder.to_owned();
    let path_of = move |digest: &Digest| folder.join(blake3::Hash::from(*digest).to_hex().as_str());
    PieceSource::new(manifest, Box::new(path_of))
}

/// A llama whose embedding takes two pieces and a part.
fn large_embedding() -> Gguf<Cursor<Vec<u8>>> {
    let rows = (2 * PIECE_BYTES as u64 + 4_096) / 128;
    let mut writer = model("llama");
    writer.metadata.remove("tokenizer.ggml.tokens");
    let info = TensorInfo { dtype: Dtype::F32, rows, columns: 32 };
    let elements = (0..rows as u32 * 32).flat_map(|index| (index as f32).to_le_bytes()).collect();
    writer.tensors[0] = ("token_embd.weight".to_owned(), info, elements);
    source(writer.bytes())
}

#[test]
fn a_model_comes_back_from_its_pieces() {
    for (name, _) in ARCHITECTURES {
        let original = source(model(name).bytes());
        let (manifest, store) = build(&original, b"the vocabulary");
        let encoded = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&encoded).unwrap(), manifest, "{name}");
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &store);
        let pieces = piece_source(manifest, directory.path());
        assert_eq!(pieces.config(), original.config());
        assert_eq!(pieces.tensors(), original.tensors());
        assert_eq!(pieces.vocabulary().unwrap(), b"the vocabulary");
        for tensor in original.tensors().keys() {
            assert_eq!(pieces.read(tensor).unwrap(), original.read(tensor).unwrap(), "{name} {tensor}");
        }
    }
}

#[test]
fn large_tensors_are_several_pieces_and_lost_ones_are_missed() {
    let original = large_embedding();
    let (manifest, store) = build(&original, b"");
    let entry = &manifest.tensors["token_embd.weight"];
    assert_eq!(entry.pieces.len(), 3);
    let lengths: Vec<_> = entry.pieces.iter().map(|digest| store[digest].len()).collect();
    assert_eq!(lengths, [PIECE_BYTES, PIECE_BYTES, 4_096]);
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &store);
    let path = directory.path().join(blake3::Hash::from(entry.pieces[1]).to_hex().as_str());
    let pieces = piece_source(manifest.clone(), directory.path());
    assert_eq!(pieces.read("token_embd.weight").unwrap(), original.read("token_embd.weight").unwrap());
    std::fs::write(&path, [0; 100]).unwrap();
    let error = pieces.read("token_embd.weight").unwrap_err().to_string();
    assert!(error.contains("has 100 bytes, not 4194304"), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert!(pieces.read("token_embd.weight").is_err());
    assert!(pieces.read("output_norm.weight").is_ok(), "others are still there");
}

#[test]
fn stages_need_their_layers_and_what_goes_with_the_ends() {
    let (manifest, _) = build(&source(model("llama").bytes()), b"");
    let bytes = |layers| manifest.pieces_of(layers).iter().map(|(_, bytes)| bytes).sum::<u64>();
    assert!(manifest.tied());
    let embedding = 48 * 32 * 4;
    assert_eq!((manifest.embedding_bytes(), manifest.head_bytes()), (embedding, embedding + 128));
    let layer = (2 * 32 + 32 * 32 * 2 + 2 * 16 * 32 + 3 * 64 * 32) * 4;
    assert_eq!(
        (manifest.layer_bytes(0), manifest.layer_bytes(1), manifest.layer_bytes(2)),
        (layer, layer, 0)
    );
    assert_eq!(bytes(0..1), layer + embedding);
    assert_eq!(bytes(1..2), layer + embedding + 128, "the head is tied to the embedding");
    assert_eq!(bytes(0..2), 2 * layer + embedding + 128, "and fetched only once");

    let mut writer = model("llama");
    let embedding_info = writer.tensors[0].1;
    let elements = writer.tensors[0].2.iter().map(|byte| byte ^ 1).collect();
    writer = writer.tensor("output.weight", embedding_info, elements);
    let (untied, _) = build(&source(writer.bytes()), b"");
    assert!(!untied.tied());
    let first = untied.pieces_of(0..1);
    assert!(!first.contains(&(untied.tensors["output.weight"].pieces[0], embedding)));
    let last = untied.pieces_of(1..2);
    assert!(last.contains(&(untied.tensors["output.weight"].pieces[0], embedding)));
    assert!(!last.contains(&(untied.tensors["token_embd.weight"].pieces[0], embedding)));
    assert_eq!(manifest.vocabulary_pieces(), []);
    let (spoken, _) = build(&source(model("llama").bytes()), b"words");
    assert_eq!(spoken.vocabulary_pieces(), [(*blake3::hash(b"words").as_bytes(), 5)]);
}

#[test]
fn what_strangers_send_is_checked() {
    let (manifest, _) = build(&source(model("gemma3").bytes()), b"words");
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        Manifest::decode(&changed.encode().unwrap()).unwrap_err().to_string()
    };
    let norm = "blk.0.attn_norm.weight";
    let cases = [
        (refused(&|m| m.config.layers = 0), "number of layers is 0"),
        (refused(&|m| m.config.heads = 3), "a divisor of 3 heads"),
        (refused(&|m| m.config.width = 64), "expected 48 rows of 64 columns"),
        (refused(&|m| drop(m.tensors.remove(norm))), "`blk.0.attn_norm.weight` is missing"),
        (refused(&|m| drop(m.tensors.insert("x".into(), m.tensors[norm].clone()))), "`x` is no part"),
        (
            refused(&|m| m.tensors.get_mut(norm).unwrap().info.dtype = Dtype::Q4K),
            "no whole number of Q4_K blocks",
        ),
        (
            refused(&|m| m.tensors.get_mut(norm).unwrap().info.rows = u64::MAX),
            "expected 1 rows of 32 columns",
        ),
        (refused(&|m| m.tensors.get_mut(norm).unwrap().pieces.clear()), "of 128 bytes has 0 pieces"),
        (refused(&|m| m.tensors.get_mut(norm).unwrap().pieces.push([0; 32])), "of 128 bytes has 2 pieces"),
        (refused(&|m| m.vocabulary_bytes = 1 << 40), "its vocabulary of 1099511627776 bytes is too large"),
        (refused(&|m| m.vocabulary_bytes = 0), "the vocabulary of 0 bytes has 1 pieces"),
        (refused(&|m| m.vocabulary[0] = m.tensors[norm].pieces[0]), "said to be of another length"),
    ];
    for (number, (found, expected)) in cases.iter().enumerate() {
        assert!(found.contains(expected), "case {number}: {found}");
    }
    let bytes = manifest.encode().unwrap();
    for length in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..length]).is_err(), "{length} bytes");
    }
    assert!(Manifest::decode(&[bytes.clone(), vec![0]].concat()).is_err(), "nothing may follow");
    let huge = Manifest::decode(&vec![0; MANIFEST_BYTES_MAX + 1]).unwrap_err().to_string();
    assert!(huge.contains("at most 8388608 are allowed"), "{huge}");
}

/// Two orders of the same entries would be two names for one model.
#[test]
fn a_manifest_has_one_encoding() {
    let (manifest, _) = build(&source(model("llama").bytes()), b"");
    let entries: Vec<(String, Entry)> = manifest.tensors.clone().into_iter().rev().collect();
    let parts = (&manifest.config, manifest.vocabulary_bytes, &manifest.vocabulary, entries);
    let error = Manifest::decode(&borsh::to_vec(&parts).unwrap()).unwrap_err().to_string();
    assert!(error.contains("not a manifest"), "{error}");
}

#[test]
fn a_full_disk_is_named() {
    let original = source(model("llama").with("general.name", Value::Text(b"x".into())).bytes());
    let mut put = |_: &[u8]| Err(std::io::Error::other("no space"));
    let error = Manifest::build(&original, b"", &mut put, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, BuildError::Store { .. }));
    assert_eq!(error.to_string(), "cannot store a piece of blk.0.attn_k.weight: no space");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    /// What is changed at random is refused, or is another sound manifest.
    #[test]
    fn mutations_never_panic(name in 0..5_usize, changes in prop::collection::vec((0.0..1.0_f64, any::<u8>()), 1..5)) {
        let (manifest, _) = build(&source(model(ARCHITECTURES[name].0).bytes()), b"words");
        let mut bytes = manifest.encode().unwrap();
        for (place, byte) in changes {
            let at = (place * bytes.len() as f64) as usize;
            bytes[at] = byte;
        }
        if let Ok(other) = Manifest::decode(&bytes) {
            prop_assert_eq!(other.encode().unwrap(), bytes);
            prop_assert!(!other.pieces_of(0..other.config.layers).is_empty());
        }
    }
}
