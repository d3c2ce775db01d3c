//! Temporary until skein-mesh fetches several blobs at once.
use skein_mesh::{BlobStore, FetchError, Mesh, fetch_blob};
use skein_proto::ids::{Digest, NodeId};
pub(crate) async fn fetch_blobs(mesh: &Mesh, store: &BlobStore, wanted: &[(Digest, u64)], holders: &[NodeId], _progress: impl FnMut(u64)) -> Result<(), FetchError> {
    for (digest, bytes_max) in wanted {
        fetch_blob(mesh, store, *digest, holders, *bytes_max).await?;
    }
    Ok(())
}
