//! Files in a bucket of S3, or of something that speaks like it.

mod hashes;

use std::{fmt, ops::Range, path::Path as FilePath, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    ClientOptions, Error, GetOptions, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::AmazonS3Builder,
    buffered::BufWriter,
    client::{HttpClient, HttpConnector},
    path::Path,
};
use tokio::{fs::File, io::AsyncWriteExt};

use self::hashes::Hashes;
use crate::config;

/// What is sent at once; larger files go in several parts.
const PART: usize = 8 * 1024 * 1024;
/// How often, and for how long, something is tried again: a client waits for it.
const RETRIES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

/// A bucket. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: String,
}

/// Why there is no bucket.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The configuration does not say enough.
    #[error("`media.store.s3` cannot be used: {0}")]
    Settings(#[from] Error),
    /// No HTTP.
    #[error("no HTTP client can be made: {0}")]
    Http(#[from] reqwest::Error),
}

impl Bucket {
    pub(super) fn new(
        settings: &config::Bucket,
        tls: rustls::ClientConfig,
    ) -> Result<Self, BucketError> {
        // Whoever runs the server says where its files are: the guard has no say in this.
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        // Without keys in the configuration they come from the environment, as on machines of Amazon.
        let mut builder = if settings.access_key_id.is_some() {
            AmazonS3Builder::new()
        } else {
            AmazonS3Builder::from_env()
        };
        builder = builder
            .with_bucket_name(&settings.name)
            .with_region(&settings.region)
            // Not every store can delete many at once, and there is only one to delete.
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig {
                max_retries: RETRIES,
                retry_timeout: PATIENCE,
                ..RetryConfig::default()
            })
            .with_crypto_provider(Arc::new(Hashes))
            .with_http_connector(Connector(http));
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(id) = &settings.access_key_id {
            builder = builder.with_access_key_id(id);
        }
        if let Some(secret) = &settings.secret_access_key {
            builder = builder.with_secret_access_key(secret.expose());
        }
        Ok(Self {
            store: Arc::new(builder.build()?),
            prefix: settings.prefix.clone(),
        })
    }

    /// Copies a file there; it is durable when this returns.
    pub(super) async fn put(&self, name: &str, from: &FilePath) -> std::io::Result<()> {
        let mut file = File::open(from).await?;
        let mut writer = BufWriter::with_capacity(self.store.clone(), self.path(name), PART);
        tokio::io::copy(&mut file, &mut writer).await?;
        writer.shutdown().await
    }

    /// A part of a file, piece by piece.
    pub(super) async fn get(
        &self,
        name: &str,
        part: Range<u64>,
    ) -> std::io::Result<BoxStream<'static, std::io::Result<Bytes>>> {
        if part.is_empty() {
            return Ok(futures_util::stream::empty().boxed());
        }
        let options = GetOptions {
            range: Some(part.into()),
            ..GetOptions::default()
        };
        let got = self.store.get_opts(&self.path(name), options).await?;
        let pieces = got.into_stream();
        Ok(pieces.map(|piece| piece.map_err(Into::into)).boxed())
    }

    /// Removes a file; that there is none is no error.
    pub(super) async fn remove(&self, name: &str) -> std::io::Result<()> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn path(&self, name: &str) -> Path {
        Path::from(format!("{}{name}", self.prefix))
    }
}

/// Connects as the rest of the server does.
struct Connector(reqwest::Client);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}
