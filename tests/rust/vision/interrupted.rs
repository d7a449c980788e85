//! An interruption never leaves a part of an image.

use edgewise::error::Error;

use super::{DEEPSTACK, IMAGE};
use crate::models::{Model, Run, arrays, assert_same, logits};
use crate::pictures::{Seen, see};

#[test]
fn an_image_is_read_whole_or_not_at_all() {
    for model in [Model::new(IMAGE, "f32"), Model::new(DEEPSTACK, "int4")] {
        for text_before in [0, 5] {
            // The first pass of an engine takes 32 tokens, which end inside the image.
            let engine = model.open_fastest(2);
            let seen = Seen::new(&engine, &[5, 9], &[see(&engine, [16, 18], 1)], 3);
            let mut state = engine.state();
            let before = seen.part(0..text_before);
            engine.append(&mut state, before.prompt(&engine), &mut || Ok(())).unwrap();
            let mut passes = 0;
            let mut proceed = || {
                passes += 1;
                if passes > 1 { Err(Error::Interrupted) } else { Ok(()) }
            };
            let rest = seen.part(text_before..seen.ids.len());
            let error = engine.append(&mut state, rest.prompt(&engine), &mut proceed).unwrap_err();
            assert!(matches!(error, Error::Interrupted));
            assert_eq!((passes, state.len()), (2, text_before));

            engine.append(&mut state, rest.prompt(&engine), &mut || Ok(())).unwrap();
            let wanted = Run::of(&engine, seen.prompt(&engine));
            assert_same(&logits(&engine, &state), wanted.logits.last().unwrap(), "finished later");
            wanted.check_arrays(&arrays(&state), "finished later");
        }
    }
}
