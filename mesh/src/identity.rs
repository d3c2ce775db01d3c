//! TLS as Skein needs it: TLS 1.3 with RFC 7250 raw public keys on both sides, so that the node id
//! is the proof; and the secrets that QUIC derives from the node's key.
//!
//! Must never accept a peer that did not sign the handshake with the key that becomes its node id,
//! and never resume a session: resumption skips that signature.

use std::hash::BuildHasher;
use std::sync::{Arc, OnceLock};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureAlgorithm, SignatureScheme,
};
use skein_proto::ids::{NetworkId, NodeId};

/// An ed25519 SubjectPublicKeyInfo is these bytes and then the key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The name that is dialled when the node id is not known.
const ANY_NAME: &str = "any.skein";

/// What this agent shows to peers, and how it judges what they show.
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    /// Differs between two runs of one agent; a peer tells a restart from a second connection by it.
    pub(crate) incarnation: u64,
    alpn: Vec<u8>,
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    reset_key: [u8; 32],
    connection_id_key: [u8; 32],
}

impl Identity {
    pub(crate) fn new(key: SigningKey, network: NetworkId) -> Self {
        let node = NodeId(key.verifying_key().to_bytes());
        let mut spki = SPKI_PREFIX.to_vec();
        spki.extend_from_slice(&node.0);
        // The hasher's keys come from the operating system's randomness.
        let incarnation = std::hash::RandomState::new().hash_one(std::time::SystemTime::now());
        let reset_key = blake3::derive_key("skein mesh 2025 stateless reset", key.as_bytes());
        let run = [&key.as_bytes()[..], &incarnation.to_le_bytes()].concat();
        let connection_id_key = blake3::derive_key("skein mesh 2025 connection ids", &run);
        let certified =
            Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], Arc::new(TlsKey(Arc::new(key)))));
        Self {
            node,
            incarnation,
            alpn: format!("skein/1/{}", hex::encode(&network.0[..16])).into_bytes(),
            certified,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            reset_key,
            connection_id_key,
        }
    }

    /// The configuration for one dial, and where the verifier leaves the id that answered.
    pub(crate) fn client(&self, expected: Option<NodeId>) -> Result<(QuicClientConfig, Answered), Error> {
        let answered = Answered::default();
        let verifier = Arc::new(ServerKeyVerifier { expected, answered: answered.clone() });
        let mut tls = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(RawKey(self.certified.clone())));
        tls.alpn_protocols = vec![self.alpn.clone()];
        tls.resumption = Resumption::disabled();
        let config = QuicClientConfig::try_from(tls).map_err(|error| Error::General(error.to_string()))?;
        Ok((config, answered))
    }

    /// An identity that shows another node's key and signs with its own.
    #[cfg(test)]
    pub(crate) fn impersonating(key: SigningKey, network: NetworkId, victim: NodeId) -> Self {
        let spki = [&SPKI_PREFIX[..], &victim.0[..]].concat();
        let signing = Arc::new(TlsKey(Arc::new(key.clone())));
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signing));
        Self { certified, ..Self::new(key, network) }
    }

    /// The configuration of a dialler that shows no key at all.
    #[cfg(test)]
    pub(crate) fn client_without_key(&self) -> QuicClientConfig {
        let verifier = Arc::new(ServerKeyVerifier { expected: None, answered: Answered::default() });
        let mut tls = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        tls.alpn_protocols = vec![self.alpn.clone()];
        QuicClientConfig::try_from(tls).unwrap()
    }

    pub(crate) fn server(&self) -> Result<QuicServerConfig, Error> {
        let mut tls = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(ClientKeyVerifier))
            .with_cert_resolver(Arc::new(RawKey(self.certified.clone())));
        tls.alpn_protocols = vec![self.alpn.clone()];
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        QuicServerConfig::try_from(tls).map_err(|error| Error::General(error.to_string()))
    }

    /// The stateless-reset key survives a restart, so a peer whose connection belongs to an earlier
    /// run of this agent learns with its next packet that the connection is gone.
    pub(crate) fn reset_key(&self) -> Arc<dyn HmacKey> {
        Arc::new(KeyedHash(self.reset_key))
    }

    /// Connection ids that no observer can predict or link, and no two runs repeat.
    pub(crate) fn connection_ids(&self) -> ConnectionIds {
        ConnectionIds { key: self.connection_id_key, count: 0 }
    }
}

/// The TLS server name under which a node is dialled: two labels of 32 hexadecimal digits.
pub(crate) fn server_name(node: Option<NodeId>) -> String {
    match node {
        Some(node) => format!("{}.{}", hex::encode(&node.0[..16]), hex::encode(&node.0[16..])),
        None => ANY_NAME.to_owned(),
    }
}

/// The node id behind an established connection.
pub(crate) fn node_of(connection: &quinn::Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let [key] = identity.as_slice() else { return None };
    parse_spki(key).ok().map(|key| NodeId(key.to_bytes()))
}

/// The id that answered a dial, if the handshake came that far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answered(Arc<OnceLock<NodeId>>);

impl Answered {
    pub(crate) fn get(&self) -> Option<NodeId> {
        self.0.get().copied()
    }
}

fn parse_spki(bytes: &[u8]) -> Result<VerifyingKey, Error> {
    let bad = || Error::InvalidCertificate(CertificateError::BadEncoding);
    let key = bytes.strip_prefix(&SPKI_PREFIX[..]).ok_or_else(bad)?;
    let key: &[u8; 32] = key.try_into().map_err(|_| bad())?;
    VerifyingKey::from_bytes(key).map_err(|_| bad())
}

fn verify_handshake(
    message: &[u8],
    key: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let bad = || Error::InvalidCertificate(CertificateError::BadSignature);
    if signed.scheme != SignatureScheme::ED25519 {
        return Err(bad());
    }
    let signature = Signature::from_slice(signed.signature()).map_err(|_| bad())?;
    // Strict, so that a key of small order, for which anybody can sign, is nobody's identity.
    parse_spki(key)?.verify_strict(message, &signature).map_err(|_| bad())?;
    Ok(HandshakeSignatureValid::assertion())
}

fn refuse_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("Skein speaks TLS 1.3 only".to_owned()))
}

#[derive(Debug)]
struct ServerKeyVerifier {
    expected: Option<NodeId>,
    answered: Answered,
}

impl ServerCertVerifier for ServerKeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let answered = NodeId(parse_spki(end_entity)?.to_bytes());
        // One verifier serves one dial, so this is the first answer.
        let _ = self.answered.0.set(answered);
        match self.expected {
            Some(expected) if expected != answered => {
                Err(Error::General(format!("expected node {expected}, but {answered} answered")))
            }
            Some(_) | None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_handshake(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct ClientKeyVerifier;

impl ClientCertVerifier for ClientKeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        parse_spki(end_entity).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_handshake(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Shows the one key that this agent has, in either role.
#[derive(Debug)]
struct RawKey(Arc<CertifiedKey>);

impl ResolvesClientCert for RawKey {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for RawKey {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

/// The node's key as rustls sees it.
#[derive(Debug)]
struct TlsKey(Arc<SigningKey>);

impl rustls::sign::SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ED25519)
            .then(|| Box::new(TlsKey(self.0.clone())) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        let mut spki = SPKI_PREFIX.to_vec();
        spki.extend_from_slice(self.0.verifying_key().as_bytes());
        Some(SubjectPublicKeyInfoDer::from(spki))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

struct KeyedHash([u8; 32]);

impl HmacKey for KeyedHash {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0).update(data).finalize_xof().fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let signature: [u8; blake3::OUT_LEN] = signature.try_into().map_err(|_| CryptoError)?;
        // The comparison of two blake3 hashes takes constant time.
        if blake3::keyed_hash(&self.0, data) == signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Generates connection ids by a keyed hash of a counter.
#[derive(Clone)]
pub(crate) struct ConnectionIds {
    key: [u8; 32],
    count: u64,
}

impl quinn::ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        self.count = self.count.wrapping_add(1);
        let hash = blake3::keyed_hash(&self.key, &self.count.to_le_bytes());
        quinn::ConnectionId::new(&hash.as_bytes()[..self.cid_len()])
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ed25519_key_is_a_key() {
        let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
        let good = [&SPKI_PREFIX[..], key.as_bytes()].concat();
        assert_eq!(parse_spki(&good).unwrap(), key);
        assert!(parse_spki(&good[1..]).is_err());
        assert!(parse_spki(&good[..43]).is_err());
        assert!(parse_spki(&[good.clone(), vec![0]].concat()).is_err());
        assert!(parse_spki(&[]).is_err());
        let mut other_algorithm = good;
        other_algorithm[8] = 0x6e;
        assert!(parse_spki(&other_algorithm).is_err());
    }

    #[test]
    fn the_server_name_is_two_labels_of_the_node_id() {
        let name = server_name(Some(NodeId([0x1f; 32])));
        assert_eq!(name, format!("{0}.{0}", "1f".repeat(16)));
        assert!(ServerName::try_from(name).is_ok());
        assert!(ServerName::try_from(server_name(None)).is_ok());
    }
}
