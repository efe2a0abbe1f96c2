//! The keys and certificates of one control plane.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The authority that signed the API server's certificate.
pub const AUTHORITY: &str = "ca.crt";
/// The API server's certificate.
pub const CERTIFICATE: &str = "api.crt";
/// Its key.
pub const KEY: &str = "api.key";
/// The key that signs the tokens of service accounts.
pub const TOKENS_KEY: &str = "tokens.key";
/// What they are checked with.
pub const TOKENS_PUBLIC: &str = "tokens.pub";

/// Writes all of them into `folder`, for an API server that is reached at `addresses`.
pub fn write(folder: &Path, addresses: &[Ipv4Addr]) -> Result<()> {
    let mut authority = CertificateParams::new(Vec::new()).context("describe the authority")?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    authority.distinguished_name.push(DnType::CommonName, "control plane of a test");
    let authority = CertifiedIssuer::self_signed(authority, key()?).context("make the authority")?;

    let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut server = CertificateParams::new(names).context("describe the API server")?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    let server_key = key()?;
    let certificate = server.signed_by(&server_key, &authority).context("sign the API server's certificate")?;
    let tokens_key = key()?;

    for (name, text) in [
        (AUTHORITY, authority.pem()),
        (CERTIFICATE, certificate.pem()),
        (KEY, server_key.serialize_pem()),
        (TOKENS_KEY, tokens_key.serialize_pem()),
        (TOKENS_PUBLIC, tokens_key.public_key_pem()),
    ] {
        std::fs::write(folder.join(name), text).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

fn key() -> Result<KeyPair> {
    KeyPair::generate().context("make a key")
}
