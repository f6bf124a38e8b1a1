//! The page's side of the engine's worker: requests to it, events from it, and its end.

use std::cell::RefCell;
use std::rc::Rc;

use halfbyte_protocol::{Event, Failure, Kind, Request};
use js_sys::{Array, Object, Reflect};
use wasm_bindgen::prelude::*;
use web_sys::{MessageEvent, WorkerOptions, WorkerType};

use crate::ui::address;

/// What waits for the worker to listen; none once it does.
type Waiting = Rc<RefCell<Option<Vec<(JsValue, Array)>>>>;

/// A worker. It ends when this is dropped.
pub(crate) struct Worker {
    worker: web_sys::Worker,
    waiting: Waiting,
    _heard: Closure<dyn FnMut(MessageEvent)>,
    _failed: Closure<dyn FnMut(JsValue)>,
}

impl Worker {
    /// Starts one; `hear` gets each event and the bytes that came with it.
    ///
    /// # Errors
    /// What the browser says where it starts none.
    pub(crate) fn start(hear: impl Fn(Event, Vec<JsValue>) + Clone + 'static) -> Result<Self, Failure> {
        let options = WorkerOptions::new();
        options.set_type(WorkerType::Module);
        let worker = web_sys::Worker::new_with_options(&address("worker/worker.js"), &options)
            .map_err(|e| bug(&format!("{e:?}")))?;
        let waiting: Waiting = Rc::new(RefCell::new(Some(Vec::new())));
        let heard = {
            let (worker, waiting, hear) = (worker.clone(), waiting.clone(), hear.clone());
            Closure::<dyn FnMut(MessageEvent)>::new(move |message: MessageEvent| match parse(&message.data()) {
                Ok((Event::Awake, _)) => {
                    for (message, buffers) in waiting.borrow_mut().take().unwrap_or_default() {
                        send(&worker, &message, &buffers);
                    }
                }
                Ok((event, parts)) => hear(event, parts),
                Err(failure) => hear(Event::Lost(failure), vec![]),
            })
        };
        // A script that is not there is told by an event without a message.
        let failed = Closure::<dyn FnMut(JsValue)>::new(move |event: JsValue| {
            let failure = match Reflect::get(&event, &"message".into()).unwrap_or_default().as_string() {
                Some(message) => bug(&format!("its script failed: {message}")),
                None => Failure {
                    kind: Kind::Network,
                    message: "the engine's worker cannot be loaded: is the network there, and the site whole? \
                              `cargo xtask web` builds it with its worker, `trunk serve` without"
                        .into(),
                },
            };
            hear(Event::Lost(failure), vec![]);
        });
        worker.set_onmessage(Some(heard.as_ref().unchecked_ref()));
        worker.set_onerror(Some(failed.as_ref().unchecked_ref()));
        Ok(Self { worker, waiting, _heard: heard, _failed: failed })
    }

    /// Asks for something; `ArrayBuffer`s among the parts change hands.
    pub(crate) fn post(&self, request: &Request, parts: &[JsValue]) {
        let Ok(json) = serde_json::to_string(request) else { return };
        let message = Object::new();
        // Setting a key of a fresh object does not fail.
        let _ = Reflect::set(&message, &"json".into(), &json.into());
        let _ = Reflect::set(&message, &"parts".into(), &parts.iter().collect::<Array>());
        let buffers: Array = parts.iter().filter(|part| part.is_instance_of::<js_sys::ArrayBuffer>()).collect();
        match &mut *self.waiting.borrow_mut() {
            Some(waiting) => waiting.push((message.into(), buffers)),
            None => send(&self.worker, &message, &buffers),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.worker.set_onmessage(None);
        self.worker.set_onerror(None);
        self.worker.terminate();
    }
}

fn send(worker: &web_sys::Worker, message: &JsValue, buffers: &Array) {
    // Text, files and whole buffers can always be posted.
    let _ = worker.post_message_with_transfer(message, buffers);
}

fn parse(data: &JsValue) -> Result<(Event, Vec<JsValue>), Failure> {
    let get = |key: &str| Reflect::get(data, &key.into()).unwrap_or_default();
    let json = get("json").as_string().unwrap_or_default();
    let event = serde_json::from_str(&json).map_err(|e| bug(&format!("it said what this page does not know: {e}")))?;
    let parts = get("parts");
    Ok((event, if Array::is_array(&parts) { Array::from(&parts).to_vec() } else { vec![] }))
}

fn bug(reason: &str) -> Failure {
    Failure { kind: Kind::Bug, message: format!("the worker: {reason}; reload the page") }
}
