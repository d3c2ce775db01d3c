//! The round trip of one stage's frame between two processes on this machine, beside the same bytes over bare
//! UDP, which no transport in user space can beat.
//!
//! `cargo run --release -p skein-mesh --example frames`

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use skein_mesh::{Event, Mesh, MeshConfig, PeerAddress, StreamKind};
use skein_proto::ids::{NetworkId, NodeId};
use smol::channel::Receiver;

const CHILD: &str = "SKEIN_FRAMES_CHILD";
const ROUNDS: usize = 5_000;
/// A row of a small model: a width of 576 in f16, and its exponent.
const FRAME_BYTES: usize = 1_153;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let (key, children) = (SigningKey::from_bytes(&[2; 32]), ["mesh", "udp"]);
    match std::env::var(CHILD).as_deref() {
        Ok("mesh") => smol::future::block_on(echo_frames(key)),
        Ok("udp") => echo_datagrams(),
        _ => {
            let peer = NodeId(key.verifying_key().to_bytes());
            let [mut mesh, mut udp] = children.map(Echo::start);
            let (mesh, udp) = (
                mesh.as_mut().map_err(|error| error.to_string())?,
                udp.as_mut().map_err(|error| error.to_string())?,
            );
            report("UDP", datagrams(udp.address)?)?;
            smol::future::block_on(frames(PeerAddress { node: Some(peer), address: mesh.address }))
        }
    }
}

/// A child that sends back what it gets.
struct Echo {
    process: Child,
    address: SocketAddr,
}

impl Echo {
    fn start(kind: &str) -> Result<Self, Failure> {
        let mut process =
            Command::new(std::env::current_exe()?).env(CHILD, kind).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = process.stdout.take().ok_or("no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        Ok(Self { address: line.trim().parse()?, process })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn mesh(key: SigningKey, bootstrap: Vec<PeerAddress>) -> Result<(Mesh, Receiver<Event>), Failure> {
    let listen = "127.0.0.1:0".parse()?;
    Ok(Mesh::bind(MeshConfig { key, network: NetworkId([7; 32]), listen, bootstrap })?)
}

fn say(line: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

async fn echo_frames(key: SigningKey) -> Result<(), Failure> {
    let (mesh, events) = mesh(key, vec![])?;
    say(&mesh.local_address().to_string())?;
    while let Ok(event) = events.recv().await {
        if let Event::Stream { mut stream, .. } = event {
            skein_mesh::spawn(async move {
                while let Ok(Some(frame)) = stream.recv_frame(1 << 20).await {
                    if stream.send_frame(&frame).await.is_err() {
                        break;
                    }
                }
            })
            .detach();
        }
    }
    Ok(())
}

async fn frames(peer: PeerAddress) -> Result<(), Failure> {
    let (mesh, events) = mesh(SigningKey::from_bytes(&[1; 32]), vec![peer])?;
    let node = loop {
        if let Event::Up { node, .. } = events.recv().await? {
            break node;
        }
    };
    let mut opened = Vec::new();
    let mut stream = mesh.open(node, StreamKind::Stage).await?;
    for _ in 0..200 {
        let begun = Instant::now();
        let mut stream = mesh.open(node, StreamKind::Stage).await?;
        stream.send_frame(&[0; 100]).await?;
        stream.recv_frame(1 << 20).await?;
        opened.push(begun.elapsed());
        stream.finish()?;
    }
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        stream.send_frame(&[5; FRAME_BYTES]).await?;
        stream.recv_frame(1 << 20).await?;
        times.push(begun.elapsed());
    }
    report("bulk stream", times)?;
    report("opening one, first frame and answer", opened)
}

fn echo_datagrams() -> Result<(), Failure> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    say(&socket.local_addr()?.to_string())?;
    let mut buffer = [0; 2_000];
    loop {
        let (bytes, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..bytes], from)?;
    }
}

fn datagrams(address: SocketAddr) -> Result<Vec<Duration>, Failure> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 2_000];
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        socket.send(&[5; FRAME_BYTES])?;
        socket.recv(&mut buffer)?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

fn report(what: &str, mut times: Vec<Duration>) -> Result<(), Failure> {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    say(&format!("{what}: p50 {} us, p90 {} us, p99 {} us of {}", at(50), at(90), at(99), times.len()))
}
