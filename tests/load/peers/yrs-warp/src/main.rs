//! yrs-warp as its examples use it, with a room for each path, on one thread, TCP_NODELAY on.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Weak},
};

use futures_util::StreamExt;
use socket2::{Domain, Socket, Type};
use tokio::{
    net::TcpListener,
    sync::Mutex,
};
use warp::{Filter, ws::{WebSocket, Ws}};
use yrs::{Doc, sync::Awareness};
use yrs_warp::{
    AwarenessRef,
    broadcast::BroadcastGroup,
    ws::{WarpSink, WarpStream},
};

type Rooms = Arc<Mutex<HashMap<String, Weak<BroadcastGroup>>>>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("a port");
    let rooms = Rooms::default();
    let route = warp::path::param()
        .and(warp::ws())
        .map(move |room: String, ws: Ws| {
            let rooms = Arc::clone(&rooms);
            ws.max_message_size(64 << 20).on_upgrade(move |socket| serve(rooms, room, socket))
        });
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&address.into()).expect("a free port");
    socket.listen(4096).expect("a listener");
    socket.set_nonblocking(true).expect("a socket that does not block");
    let listener = TcpListener::from_std(socket.into()).expect("a runtime");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).map(|stream| {
        stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream))
    });
    warp::serve(route).run_incoming(incoming).await;
}

async fn serve(rooms: Rooms, name: String, socket: WebSocket) {
    let room = {
        let mut rooms = rooms.lock().await;
        match rooms.get(&name).and_then(Weak::upgrade) {
            Some(room) => room,
            None => {
                let awareness: AwarenessRef = Arc::new(Awareness::new(Doc::new()));
                let room = Arc::new(BroadcastGroup::new(awareness, 1 << 10).await);
                rooms.insert(name, Arc::downgrade(&room));
                room
            }
        }
    };
    let (sink, stream) = socket.split();
    let sink = Arc::new(Mutex::new(WarpSink::from(sink)));
    let subscription = room.subscribe(sink, WarpStream::from(stream));
    let _ = subscription.completed().await;
}
