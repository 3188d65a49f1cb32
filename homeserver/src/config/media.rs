//! What the server stores, and for how long.

use serde::Deserialize;

use super::Secret;

const MIB: u64 = 1024 * 1024;

/// What the server accepts to store, and for how long.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Media {
    /// The largest upload, in bytes. Default 100 MiB.
    pub max_upload_bytes: u64,
    /// How much each user may store, in bytes. By default there is no limit.
    pub max_bytes_per_user: Option<u64>,
    /// For how many announced uploads each user may keep others waiting. Default 5.
    pub max_pending_uploads: u32,
    /// The most pixels of an image of which thumbnails are made. Default 32 million.
    pub max_image_pixels: u64,
    /// The largest file of another server, in bytes. Default 100 MiB.
    pub max_remote_bytes: u64,
    /// How much is kept of what was fetched from other servers, in bytes. Default 10 GiB.
    pub remote_cache_bytes: Option<u64>,
    /// For how many days it is kept when nobody asks for it. Default 90.
    pub remote_cache_days: Option<u32>,
    /// Where files are. What is in the directory already can still be read when this changes.
    pub store: MediaStore,
}

/// Where files are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MediaStore {
    /// In `media` in the data directory.
    #[default]
    Directory,
    /// In a bucket: `[media.store.s3]`.
    S3(Bucket),
}

/// A bucket of S3, or of something that speaks like it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Where it is. Default `us-east-1`, which most of those that are not Amazon accept.
    #[serde(default = "region")]
    pub region: String,
    /// The URL of the store, if that is not Amazon's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// What to log in with. Without it the environment is asked, as on machines of Amazon.
    #[serde(default)]
    pub access_key_id: Option<String>,
    /// The secret that belongs to it.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
    /// What the names of all files begin with, such as `sotto/`. Default nothing.
    #[serde(default)]
    pub prefix: String,
}

fn region() -> String {
    "us-east-1".to_owned()
}

impl Default for Media {
    fn default() -> Self {
        Self {
            max_upload_bytes: 100 * MIB,
            max_bytes_per_user: None,
            max_pending_uploads: 5,
            max_image_pixels: 32_000_000,
            max_remote_bytes: 100 * MIB,
            remote_cache_bytes: Some(10 * 1024 * MIB),
            remote_cache_days: Some(90),
            store: MediaStore::default(),
        }
    }
}

/// Previews of links. Whoever has an account can make the server fetch any public page with them, and the server
/// learns which pages people talk about.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Previews {
    /// Whether there are previews. Default no.
    pub enabled: bool,
    /// The largest image of a page that is kept, in bytes. Default 10 MiB.
    pub max_image_bytes: u64,
}

impl Default for Previews {
    fn default() -> Self {
        Self {
            enabled: false,
            max_image_bytes: 10 * MIB,
        }
    }
}
