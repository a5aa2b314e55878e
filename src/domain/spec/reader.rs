//! Reads a JSON document field by field and keeps a list of everything that is wrong with it, so that a caller hears
//! of all mistakes at once and of each with its place.
//!
//! Every reading method returns `Result<_, Reported>`; a [`Reported`] exists only once its problem is on the list. So
//! a reader reads all fields first, and uses `?` on the results afterwards.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    str::FromStr,
};

use serde_json::{Map, Value};

use super::Invalid;

/// One thing that is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Where, as a JSON pointer (RFC 6901); empty for the document itself.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

/// Proof that a problem was put on the list.
#[derive(Clone, Copy, Debug)]
pub struct Reported(());

/// The list of problems.
#[derive(Debug, Default)]
pub struct Errors(RefCell<Vec<FieldError>>);

impl Errors {
    /// Puts a problem on the list.
    pub fn report(&self, pointer: &str, detail: impl Into<String>) -> Reported {
        self.0.borrow_mut().push(FieldError {
            pointer: pointer.to_owned(),
            detail: detail.into(),
        });
        Reported(())
    }

    /// The value, if nothing is on the list.
    pub fn finish<T>(self, value: Result<T, Reported>) -> Result<T, Vec<FieldError>> {
        let errors = self.0.into_inner();
        match value {
            Ok(value) if errors.is_empty() => Ok(value),
            _ => Err(errors),
        }
    }
}

/// An object that is being read. Fields that nobody asked for are reported by [`Object::finish`].
#[derive(Debug)]
pub struct Object<'a> {
    pointer: String,
    fields: &'a Map<String, Value>,
    errors: &'a Errors,
    known: RefCell<Vec<&'static str>>,
    /// Whether the object had to be given up, so that what its other fields mean isn't known.
    abandoned: Cell<bool>,
}

impl<'a> Object<'a> {
    /// Begins with the whole document.
    pub fn document(value: &'a Value, errors: &'a Errors) -> Result<Self, Reported> {
        Field::document(value, errors).object()
    }

    /// Where the object is.
    pub fn pointer(&self) -> &str {
        &self.pointer
    }

    /// A field by its name, present or not.
    pub fn field(&self, name: &'static str) -> Field<'a> {
        self.known.borrow_mut().push(name);
        Field {
            pointer: child(&self.pointer, name),
            value: self.fields.get(name).filter(|value| !value.is_null()),
            errors: self.errors,
        }
    }

    /// A field by its name if it is there, be it null.
    pub fn named(&self, name: &'static str) -> Option<Field<'a>> {
        let field = self.field(name);
        self.fields.contains_key(name).then_some(field)
    }

    /// Says that the other fields can't be judged, because the one that tells what they mean is wrong.
    pub fn abandon(&self) {
        self.abandoned.set(true);
    }

    /// Reports the fields that nobody asked for.
    pub fn finish(self) {
        if self.abandoned.get() {
            return;
        }
        let known = self.known.into_inner();
        for name in self.fields.keys().filter(|name| !known.contains(&name.as_str())) {
            let detail = match nearest(name, known.iter().copied()) {
                Some(near) => format!("unknown field; did you mean `{near}`?"),
                None if known.is_empty() => "unknown field; none is expected here".to_owned(),
                None => format!("unknown field; expected {}", list(known.iter().copied())),
            };
            self.errors.report(&child(&self.pointer, name), detail);
        }
    }
}

/// A field that may be there. JSON's null counts as absent.
#[derive(Debug)]
pub struct Field<'a> {
    pointer: String,
    value: Option<&'a Value>,
    errors: &'a Errors,
}

impl<'a> Field<'a> {
    /// A whole document.
    pub const fn document(value: &'a Value, errors: &'a Errors) -> Self {
        Self {
            pointer: String::new(),
            value: Some(value),
            errors,
        }
    }

    /// Where the field is, or would be.
    pub fn pointer(&self) -> &str {
        &self.pointer
    }

    /// The value as it stands.
    pub fn value(&self) -> Option<&'a Value> {
        self.value
    }

    /// Reports a problem of this field.
    pub fn report(&self, detail: impl Into<String>) -> Reported {
        self.errors.report(&self.pointer, detail)
    }

    fn wrong_type(&self, value: &Value, expected: &str) -> Reported {
        let got = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        self.report(format!("expected {expected}, got {got}"))
    }

    fn missing(&self) -> Reported {
        self.report("required")
    }

    /// Reports the field if it is there at all.
    pub fn refuse(self, detail: &str) -> Result<(), Reported> {
        match self.value {
            Some(_) => Err(self.report(detail)),
            None => Ok(()),
        }
    }

    /// A text.
    pub fn text(&self) -> Result<Option<&'a str>, Reported> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(other, "a string")),
        }
    }

    /// A text that must be there.
    pub fn required_text(&self) -> Result<&'a str, Reported> {
        self.text()?.ok_or_else(|| self.missing())
    }

    /// A checked text.
    pub fn parse<T: FromStr<Err = Invalid>>(&self) -> Result<Option<T>, Reported> {
        self.text()?
            .map(|text| text.parse().map_err(|Invalid(detail)| self.report(detail)))
            .transpose()
    }

    /// A checked text that must be there.
    pub fn required<T: FromStr<Err = Invalid>>(&self) -> Result<T, Reported> {
        self.parse()?.ok_or_else(|| match "".parse::<T>() {
            Err(Invalid(expected)) => self.report(format!("required: {expected}")),
            Ok(_) => self.missing(),
        })
    }

    /// One of a few texts.
    pub fn one_of<T: Copy>(&self, choices: &[(&'static str, T)]) -> Result<Option<T>, Reported> {
        let Some(text) = self.text()? else { return Ok(None) };
        let names = || choices.iter().map(|(name, _)| *name);
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err(self.report(match nearest(text, names()) {
                Some(near) => format!("expected {}; did you mean `{near}`?", list(names())),
                None => format!("expected {}", list(names())),
            })),
        }
    }

    /// A boolean.
    pub fn boolean(&self) -> Result<Option<bool>, Reported> {
        match self.value {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_type(other, "true or false")),
        }
    }

    /// A whole number within a range.
    pub fn integer(&self, min: i64, max: i64) -> Result<Option<i64>, Reported> {
        let Some(value) = self.value else { return Ok(None) };
        let expected = format!("a whole number from {min} to {max}");
        if !value.is_number() {
            return Err(self.wrong_type(value, &expected));
        }
        match value.as_i64() {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(self.report(format!("expected {expected}"))),
        }
    }

    /// An object.
    pub fn object(&self) -> Result<Object<'a>, Reported> {
        Ok(Object {
            pointer: self.pointer.clone(),
            fields: match self.value {
                None => return Err(self.missing()),
                Some(Value::Object(fields)) => fields,
                Some(other) => return Err(self.wrong_type(other, "an object")),
            },
            errors: self.errors,
            known: RefCell::default(),
            abandoned: Cell::default(),
        })
    }

    /// An object whose keys are the caller's.
    pub fn map(&self) -> Result<Option<&'a Map<String, Value>>, Reported> {
        match self.value {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.wrong_type(other, "an object")),
        }
    }

    /// The entries of an object whose keys are the caller's.
    pub fn entries(&self) -> Result<Vec<(&'a str, Field<'a>)>, Reported> {
        let entry = |(key, value): (&'a String, &'a Value)| {
            let field = Field {
                pointer: child(&self.pointer, key),
                value: Some(value),
                errors: self.errors,
            };
            (key.as_str(), field)
        };
        Ok(self.map()?.into_iter().flatten().map(entry).collect())
    }

    /// The elements of an array; `None` when the array isn't there.
    pub fn elements(&self) -> Result<Option<Vec<Field<'a>>>, Reported> {
        let element = |(index, value): (usize, &'a Value)| Field {
            pointer: format!("{}/{index}", self.pointer),
            value: Some(value),
            errors: self.errors,
        };
        match self.value {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values.iter().enumerate().map(element).collect())),
            Some(other) => Err(self.wrong_type(other, "an array")),
        }
    }
}

/// The pointer of a member (RFC 6901, section 3).
fn child(parent: &str, key: &str) -> String {
    let mut pointer = String::with_capacity(parent.len() + 1 + key.len());
    pointer.push_str(parent);
    pointer.push('/');
    for c in key.chars() {
        match c {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            c => pointer.push(c),
        }
    }
    pointer
}

/// The name that was probably meant.
fn nearest<'n>(text: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // Longer texts aren't slips of the finger, and comparing them takes quadratic time.
    if text.len() > 64 {
        return None;
    }
    names
        .map(|name| (strsim::osa_distance(&text.to_lowercase(), name), name))
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

/// Names as an enumeration.
fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.collect();
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        let separator = match index {
            0 => "",
            last if last + 1 == names.len() => " or ",
            _ => ", ",
        };
        // Writing to a String can't fail.
        let _ = write!(text, "{separator}`{name}`");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_listed_and_guessed() {
        assert_eq!(list(["a"].into_iter()), "`a`");
        assert_eq!(list(["a", "b", "c"].into_iter()), "`a`, `b` or `c`");
        let names = || ["dockerfile", "images", "push"].into_iter();
        assert_eq!(nearest("dockerFile", names()), Some("dockerfile"));
        assert_eq!(nearest("image", names()), Some("images"));
        assert_eq!(nearest("psuh", names()), Some("push"));
        assert_eq!(nearest("nonsense", names()), None);
    }

    proptest! {
        #[test]
        fn a_pointer_leads_to_its_value(key in "[a~/0-9é]{0,6}") {
            let document = serde_json::json!({ "outer": { (key.clone()): 1 } });
            prop_assert_eq!(document.pointer(&child(&child("", "outer"), &key)), Some(&Value::from(1)));
        }
    }
}
