//! Guest CPU state, interpreter and dynamic binary translator.
