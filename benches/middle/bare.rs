//! The smallest HTTP proxy: hyper on both sides, one upstream connection for each client connection, upgrades copied
//! byte by byte, no authentication, no log. It is what the others are compared with.

use std::convert::Infallible;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use crate::middle::pinned;

/// Runs the proxy instead of the benchmark, where the arguments are those of [`command`].
pub(crate) fn is_asked() -> bool {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, mode, workers, listen, upstream] = arguments.as_slice() else { return false };
    if mode != "--bare" {
        return false;
    }
    // As `cli::executor` does it.
    let mut builder = match workers.parse().expect("a number") {
        1 => tokio::runtime::Builder::new_current_thread(),
        workers => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(workers);
            builder
        }
    };
    builder.enable_all().build().expect("runtime").block_on(serve_all(listen.to_owned(), upstream.to_owned()));
    true
}

/// Returns the command that runs it on these cores: this program with other arguments.
pub(crate) fn command(cores: &str, listen: &str, upstream: &str) -> Command {
    let mut command = pinned(cores, Path::new(&std::env::current_exe().expect("itself")));
    command.args(["--bare", &cores.split(',').count().to_string(), listen, upstream]);
    command
}

async fn serve_all(listen: String, upstream: String) {
    // On a worker, as the accepted connections are.
    tokio::spawn(run(listen, upstream)).await.expect("runs");
}

async fn run(listen: String, upstream: String) {
    let listener = TcpListener::bind(listen).await.expect("port");
    loop {
        let (stream, _) = listener.accept().await.expect("accepts");
        tokio::spawn(serve(stream, upstream.clone()));
    }
}

async fn serve(stream: TcpStream, upstream: String) {
    stream.set_nodelay(true).expect("nodelay");
    let tcp = TcpStream::connect(upstream).await.expect("upstream");
    tcp.set_nodelay(true).expect("nodelay");
    let (sender, connection) = client::handshake(TokioIo::new(tcp)).await.expect("handshake");
    tokio::spawn(connection.with_upgrades());
    let sender = Arc::new(Mutex::new(sender));
    let service = service_fn(move |request: Request<Incoming>| {
        let sender = Arc::clone(&sender);
        async move { Ok::<_, Infallible>(forward(&sender, request).await) }
    });
    let _ = server::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

async fn forward(sender: &Mutex<client::SendRequest<Incoming>>, mut request: Request<Incoming>) -> Response<Incoming> {
    let client = request.headers().contains_key(hyper::header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let mut answer = sender.lock().await.send_request(request).await.expect("an answer");
    if let Some(client) = client
        && answer.status() == StatusCode::SWITCHING_PROTOCOLS
    {
        let upstream = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else { return };
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
        });
    }
    answer
}
