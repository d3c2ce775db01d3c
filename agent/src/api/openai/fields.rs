//! A request's fields, each read with an error that names it.
//!
//! null is the same as absent, and fields that nobody reads are ignored, as at OpenAI. Must never know what a field
//! means.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::api::Problem;

/// Characters of a bad value that an error quotes.
const QUOTED_MAX: usize = 60;

/// A JSON object, or a part of one.
#[derive(Debug)]
pub(super) struct Fields {
    /// What its fields' names begin with in errors.
    prefix: String,
    fields: Map<String, Value>,
}

impl Fields {
    /// The object that is a request's body.
    pub(super) fn of_body(bytes: &[u8]) -> Result<Self, Problem> {
        if let Err(error) = std::str::from_utf8(bytes) {
            let message =
                format!("the body is no UTF-8 text ({error})\nhint: JSON is UTF-8; escape what is no text");
            return Err(Problem::invalid(message));
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => Ok(Self { prefix: String::new(), fields }),
            Ok(other) => {
                let message = format!(
                    "the body must be a JSON object, not {}\nhint: send {{\"model\": …}} as in OpenAI's API",
                    kind(&other)
                );
                Err(Problem::invalid(message))
            }
            Err(error) => {
                let message = format!("the body is not JSON: {error}\nhint: send it as OpenAI's clients do");
                Err(Problem::invalid(message))
            }
        }
    }

    /// The object that stands at `place` of the request.
    pub(super) fn of_value(value: Value, place: &str) -> Result<Self, Problem> {
        match value {
            Value::Object(fields) => Ok(Self { prefix: format!("{place}."), fields }),
            other
            @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                Err(wrong(place, "an object", &other))
            }
        }
    }

    /// The name by which an error calls a field.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Takes a field out; none if it is null.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a string.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.place(name), "a string", &other)),
        }
    }

    /// Takes true or false.
    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(&self.place(name), "true or false", &other)),
        }
    }

    /// Takes a whole number.
    pub(super) fn whole(&mut self, name: &str, allowed: RangeInclusive<u64>) -> Result<Option<u64>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let place = self.place(name);
        if !value.is_number() {
            return Err(wrong(&place, "a whole number", &value));
        }
        let whole = value.as_u64().filter(|whole| allowed.contains(whole));
        whole.map(Some).ok_or_else(|| out_of_range(&place, &value, &allowed, "whole numbers "))
    }

    /// Takes a number.
    pub(super) fn number(
        &mut self,
        name: &str,
        allowed: RangeInclusive<f64>,
    ) -> Result<Option<f64>, Problem> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let place = self.place(name);
        let Some(number) = value.as_f64() else { return Err(wrong(&place, "a number", &value)) };
        if !allowed.contains(&number) {
            return Err(out_of_range(&place, &value, &allowed, ""));
        }
        Ok(Some(number))
    }

    /// Takes a list.
    pub(super) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, Problem> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(wrong(&self.place(name), "a list", &other)),
        }
    }

    /// Refuses a field that has any value but these: to ignore it would change the answer.
    pub(super) fn only(&mut self, name: &str, allowed: &[Value]) -> Result<(), Problem> {
        match self.take(name) {
            Some(value) if !allowed.iter().any(|allowed| same(allowed, &value)) => {
                let place = self.place(name);
                let message =
                    format!("`{place}` = {} is not supported\nhint: leave `{place}` out", quoted(&value));
                Err(Problem::invalid(message).about(place).coded("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }
}

/// `place` holds something of another type.
pub(super) fn wrong(place: &str, wanted: &str, found: &Value) -> Problem {
    let message = format!(
        "`{place}` must be {wanted}, not {} ({})\nhint: see OpenAI's API for its type",
        kind(found),
        quoted(found)
    );
    Problem::invalid(message).about(place)
}

/// `place` is needed.
pub(super) fn missing(place: &str, hint: &str) -> Problem {
    Problem::invalid(format!("`{place}` is missing\nhint: {hint}"))
        .about(place)
        .coded("missing_required_parameter")
}

fn out_of_range<T: Display>(place: &str, value: &Value, allowed: &RangeInclusive<T>, what: &str) -> Problem {
    let message = format!(
        "`{place}` is {}, allowed are {what}{} to {}\nhint: leave `{place}` out for its default",
        quoted(value),
        allowed.start(),
        allowed.end()
    );
    Problem::invalid(message).about(place)
}

/// Equal as values: 0 is 0.0.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|number| Some(number) == b.as_f64())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
