//! The only place where errors of the core become Python exceptions, and where Python's reach the core.

use std::any::Any;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::create_exception;
use pyo3::exceptions::{
    PyArithmeticError, PyFileNotFoundError, PyKeyboardInterrupt, PyMemoryError, PyOSError, PyPermissionError,
    PyRuntimeError, PyValueError,
};
use pyo3::marker::Ungil;
use pyo3::prelude::*;

use crate::error::{Error, Result};

create_exception!(edgewise, CheckpointError, PyValueError, "A file of a checkpoint is unusable.");
create_exception!(edgewise, ContextError, PyValueError, "More tokens than the model's context holds.");
create_exception!(edgewise, NonFiniteError, PyArithmeticError, "The arithmetic left the finite numbers.");

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound => PyFileNotFoundError::new_err(text),
                ErrorKind::PermissionDenied => PyPermissionError::new_err(text),
                _ => PyOSError::new_err(text),
            },
            Error::File { .. } | Error::Tensor { .. } | Error::Config { .. } => {
                CheckpointError::new_err(text)
            }
            Error::Argument { .. } => PyValueError::new_err(text),
            Error::Context { .. } => ContextError::new_err(text),
            Error::Memory { .. } => PyMemoryError::new_err(text),
            Error::NonFinite { .. } => NonFiniteError::new_err(text),
            Error::Interrupted => PyKeyboardInterrupt::new_err(text),
        }
    }
}

/// Runs `work` with the interpreter released. `work` may call back into Python through [`Callbacks`]; what Python
/// raises there ends the work and is raised here. A panic, which is always a defect of ours, becomes a `RuntimeError`.
pub fn released<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&mut Callbacks) -> Result<T> + Send + Ungil,
) -> PyResult<T> {
    let (result, raised) = py.detach(|| {
        let mut callbacks = Callbacks { raised: None };
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut callbacks)));
        (result, callbacks.raised)
    });
    match (result, raised) {
        (Err(panic), _) => Err(PyRuntimeError::new_err(format!("internal error: {}", panic_text(&*panic)))),
        (Ok(Err(_)), Some(raised)) => Err(raised),
        (Ok(result), _) => Ok(result?),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown")
}

/// Calls into Python from work that runs without the interpreter.
pub struct Callbacks {
    raised: Option<PyErr>,
}

impl Callbacks {
    /// Handles pending signals: Ctrl-C ends the work.
    #[allow(clippy::redundant_closure_for_method_calls, reason = "the method is not general over lifetimes")]
    pub fn check_signals(&mut self) -> Result<()> {
        self.call(|py| py.check_signals())
    }

    /// Reports progress to `callback`, if there is one, and handles signals.
    pub fn progress(
        &mut self,
        callback: Option<&Py<PyAny>>,
        done: u64,
        total: u64,
        name: &str,
    ) -> Result<()> {
        self.call(|py| {
            if let Some(callback) = callback {
                callback.call1(py, (done, total, name))?;
            }
            py.check_signals()
        })
    }

    fn call(&mut self, f: impl FnOnce(Python<'_>) -> PyResult<()>) -> Result<()> {
        Python::attach(f).map_err(|raised| {
            self.raised = Some(raised);
            Error::Interrupted
        })
    }
}
