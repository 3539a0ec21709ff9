//! Generates the protocol's types from `src/server/plugin.proto`, without `protoc`.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=src/server/plugin.proto");
    let files = protox::compile(["src/server/plugin.proto"], ["src/server"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("plugin.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().build_transport(false).bytes(".").compile_fds(files)?;
    Ok(())
}
