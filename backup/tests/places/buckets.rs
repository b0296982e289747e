//! Buckets by their addresses: one behind a server that speaks S3 and checks each request's signature; and what is said of
//! addresses and options that are wrong.

use std::collections::BTreeMap;

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const SECRET: &str = "a secret of a test";

/// A server with the bucket `acme`, and the options that it takes.
struct Bucket {
    folder: tempfile::TempDir,
    options: BTreeMap<String, String>,
    server: JoinHandle<()>,
}

impl Bucket {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("acme")).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single("key", SECRET));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = [
            ("aws_endpoint", format!("http://{}", listener.local_addr().unwrap())),
            ("aws_allow_http", "true".to_owned()),
            ("aws_region", "eu-central-1".to_owned()),
            ("aws_access_key_id", "key".to_owned()),
            ("aws_secret_access_key", SECRET.to_owned()),
        ];
        let server = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), service.clone());
                tokio::spawn(served);
            }
        });
        let options = options.map(|(name, value)| (name.to_owned(), value)).into();
        Self { folder, options, server }
    }

    fn vault(&self, recipients: Recipients) -> Vault {
        let place = Place::open("s3://acme/taskflow", &self.options).unwrap();
        Vault { settings: Settings::default(), place, second: None, recipients, reason: None }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tokio::test]
async fn a_backup_goes_into_a_bucket_and_comes_out() {
    let bucket = Bucket::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (keys, recipients) = key(&folder, "key");
    let mut vault = bucket.vault(recipients);
    // In several parts.
    let large = noise(9 << 20, 5);
    let manifest = make(&vault, &large, Compression::Zstd).await.unwrap();
    let copied = std::slice::from_ref(&manifest.id);
    assert!(content(&vault, &manifest, 1, &keys).await.unwrap() == large, "other bytes");
    let listed = vault.list().await.unwrap();
    assert_eq!(listed.iter().map(vault::Found::state).collect::<Vec<_>>(), ["unproven"]);
    vault.verify(&manifest, Some(&keys), &Progress::default()).await.unwrap();
    // From one place into the other, both ways.
    let (second, _) = over(Arc::new(InMemory::new()), Recipients::default());
    vault.second = Some(second.place.clone());
    assert_eq!(vault.copy(&Progress::default()).await.unwrap(), copied);
    second.verify(&manifest, Some(&keys), &Progress::default()).await.unwrap();
    let other = Bucket::start().await;
    let back = Vault { second: Some(other.vault(Recipients::default()).place), ..second };
    assert_eq!(back.copy(&Progress::default()).await.unwrap(), copied);
    other.vault(Recipients::default()).verify(&manifest, Some(&keys), &Progress::default()).await.unwrap();

    // What has changed in the bucket is named.
    let file = &manifest.files[1].path;
    let at = bucket.folder.path().join("acme/taskflow").join(Vault::folder(&manifest.id)).join(file);
    let mut bytes = std::fs::read(&at).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(&at, bytes).unwrap();
    let error = vault.verify(&manifest, None, &Progress::default()).await.unwrap_err();
    assert!(error.trouble == Trouble::Damaged && error.text.contains(file.as_str()), "{error:?}");

    // The rules remove there as elsewhere.
    vault.second = None;
    vault.settings.keep.daily = 1;
    vault.settings.keep.weekly = 0;
    vault.settings.keep.monthly = 0;
    vault.settings.keep.yearly = 0;
    let newer = make(&vault, SMALL, Compression::None).await.unwrap();
    assert_eq!(vault.prune(&Progress::default()).await.unwrap(), copied);
    let left: Vec<String> = vault.list().await.unwrap().into_iter().map(|found| found.id).collect();
    assert_eq!(left, [newer.id]);
}

#[tokio::test]
async fn a_wrong_key_and_a_missing_bucket_are_named() {
    let bucket = Bucket::start().await;
    let mut options = bucket.options.clone();
    options.insert("aws_secret_access_key".to_owned(), "another".to_owned());
    let wrong = Place::open("s3://acme/taskflow", &options).unwrap();
    let error = vault::list(&wrong).await.unwrap_err();
    assert!(error.trouble == Trouble::Refused && error.text.contains("backup.options"), "{error:?}");

    // Which a reader of one file hears of in another way than of a list.
    let error = wrong.get("a").await.unwrap_err();
    assert!(error.trouble == Trouble::Refused && error.text.contains("backup.options"), "{error:?}");

    let nowhere = Place::open("s3://other/taskflow", &bucket.options).unwrap();
    let error = vault::list(&nowhere).await.unwrap_err();
    assert!(error.trouble == Trouble::Refused && error.text.contains("s3://other"), "{error:?}");
}

#[tokio::test]
async fn addresses_and_options_are_looked_at_before_anything_is_sent() {
    let open = |name: &str, options: &[(&str, &str)]| {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Place::open(name, &options.collect()).map(|place| place.name().to_owned())
    };
    let region = [("aws_region", "eu-central-1")];
    assert_eq!(open("s3://acme/taskflow", &region).unwrap(), "s3://acme/taskflow");
    let account = [("azure_storage_account_name", "acme"), ("azure_storage_account_key", "a2V5")];
    assert_eq!(open("az://acme/taskflow", &account).unwrap(), "az://acme/taskflow");
    let nobody = [(
        "google_service_account_key",
        r#"{"disable_oauth":true,"client_email":"","private_key":"","private_key_id":""}"#,
    )];
    assert_eq!(open("gs://acme/taskflow", &nobody).unwrap(), "gs://acme/taskflow");
    for (name, options, says) in [
        ("s3://acme", &[("aws_regoin", "eu-central-1")][..], "aws_regoin"),
        ("gs://acme", &region, "aws_region"),
        ("az://acme", &region, "aws_region"),
        ("ftp://acme", &[], "none of s3://"),
    ] {
        let error = open(name, options).unwrap_err();
        assert!(error.trouble == Trouble::Refused && error.text.contains(says), "{name}: {error:?}");
    }
}
