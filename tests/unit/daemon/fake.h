/* Doubles for the rooms below the HTTP side, so that its tests need no model: an engine that says a
 * scripted text, and experts whose tokens are bytes. */
#ifndef SWITCHYARD_TESTS_UNIT_DAEMON_FAKE_H
#define SWITCHYARD_TESTS_UNIT_DAEMON_FAKE_H

#include <stdatomic.h>

#include "daemon/engine.h"

/* Token ids of the fake vocabulary: bytes, then control tokens. */
enum {
    FAKE_BOS = 256,      /* <s>, only put in front by experts with add_bos */
    FAKE_IM_START = 257, /* <|im_start|> */
    FAKE_IM_END = 258,   /* <|im_end|>, end of generation */
    FAKE_VOCAB = 259,
};

/* What the engine does with every request from now on; the test's thread writes between requests.
 */
struct fake_script {
    const char *text; /* said again and again up to max_tokens; ends with a stop after
                         `tokens` tokens if that is less */
    uint32_t tokens;
    uint32_t token_us;         /* pause before each token */
    uint32_t load_ms;          /* LOADING this long before the first token */
    enum err_code submit_code; /* refuse at submit */
    enum err_code fail_code;   /* fail after fail_after tokens */
    uint32_t fail_after;
    bool deaf; /* never reacts to cancel before the request's end */
};
void fake_engine_script(const struct fake_script *s);
/* Requests that ended by cancel since the engine opened. */
uint64_t fake_engine_cancelled(void);
uint64_t fake_engine_submitted(void);
/* Prompt of the last submitted request as text, control tokens in brackets: "[257]user\nHi[258]".
 */
void fake_engine_last_prompt(struct buf *out);
/* Requests alive now: every request_open without its free. */
struct engine *fake_engine_open(struct experts *x);

/* Experts: "alpha" (alias "first"), "org/beta" (add_bos), "broken" (cannot serve), "bare" (no
 * template). Context 512 tokens. */
struct experts *fake_experts_open(size_t count);

#endif
