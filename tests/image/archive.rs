//! The archive that `make image` would write of the binary under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// An image archive, and its layout unpacked.
pub struct Archive {
    directory: tempfile::TempDir,
}

fn run(program: &str, args: &[&Path]) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/image");
    let output = Command::new(scripts.join(program)).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn tar(args: &[&str]) -> String {
    let output = Command::new("tar").args(args).output().unwrap();
    assert!(output.status.success(), "tar {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Archive {
    pub fn of_this_build() -> Archive {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let binary = Path::new(env!("CARGO_BIN_EXE_kubeweir"));
        run("rootfs", &[binary, &at("root")]);
        run("oci", &[&at("root"), &at("image.tar"), Path::new("kubeweir"), Path::new("test")]);
        fs::remove_dir_all(at("root")).unwrap();
        fs::create_dir(at("layout")).unwrap();
        tar(&["-xf", at("image.tar").to_str().unwrap(), "-C", at("layout").to_str().unwrap()]);
        Archive { directory }
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.directory.path().join("image.tar")).unwrap()
    }

    fn layout(&self, name: &str) -> PathBuf {
        self.directory.path().join("layout").join(name)
    }

    /// The file a descriptor names, which has to have its size and digest.
    fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let path = self.layout("blobs/sha256").join(digest);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(descriptor["size"], bytes.len());
        assert_eq!(sha256(&bytes), digest);
        path
    }

    fn json(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn manifest(&self) -> Value {
        let index = Archive::json(&self.layout("index.json"));
        let [manifest] = index["manifests"].as_array().unwrap().as_slice() else {
            panic!("one image: {index}");
        };
        Archive::json(&self.blob(manifest))
    }

    pub fn config(&self) -> Value {
        Archive::json(&self.blob(&self.manifest()["config"]))
    }

    fn layer(&self) -> PathBuf {
        self.blob(&self.manifest()["layers"][0])
    }

    /// Every descriptor leads to a file of its size and digest, and the layer to its contents.
    pub fn check_digests(&self) {
        let layout = Archive::json(&self.layout("oci-layout"));
        assert_eq!(layout["imageLayoutVersion"], "1.0.0");
        let unpacked = Command::new("gzip").arg("-dc").arg(self.layer()).output().unwrap().stdout;
        let id = format!("sha256:{}", sha256(&unpacked));
        assert_eq!(self.config()["rootfs"]["diff_ids"], serde_json::json!([id]));
        assert_eq!(fs::read_dir(self.layout("blobs/sha256")).unwrap().count(), 3);
    }

    /// Unpacks the layer as a container runtime does.
    pub fn unpack(&self, into: &Path) {
        fs::create_dir(into).unwrap();
        tar(&["-xzf", self.layer().to_str().unwrap(), "-C", into.to_str().unwrap()]);
    }

    /// Path and size of everything in the layer that is no directory, sorted by path.
    pub fn files(&self) -> Vec<(String, u64)> {
        let listing = tar(&["-tzvf", self.layer().to_str().unwrap()]);
        let mut files = Vec::new();
        for line in listing.lines().filter(|line| !line.starts_with('d')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[1], "0/0", "owned by root: {line}");
            let name = words[5].strip_prefix("./").unwrap().to_owned();
            files.push((name, words[2].parse().unwrap()));
        }
        files.sort();
        files
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
