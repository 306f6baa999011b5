/* What the tokenizer and template tests share: lines of JSON, vocabularies made in memory, and a
 * renderer that takes everything as text. */
#ifndef SWITCHYARD_TESTS_UNIT_EXPERTS_TEXT_TEXT_H
#define SWITCHYARD_TESTS_UNIT_EXPERTS_TEXT_TEXT_H

#include "tests/unit/experts/unit.h"

#include <jansson.h>

/* Calls `line` with every object of a JSONL file below the shared data; false (after saying so) if
 * the file is not there. */
bool text_each_line(const char *name, void (*line)(void *ctx, const json_t *object), void *ctx);
/* A string member; *ret_len its bytes. Fails the test if it is no string. */
const char *text_member(const json_t *object, const char *key, size_t *ret_len);
/* Standard base64, padding allowed. Caller frees. */
char *text_base64(const char *text, size_t *ret_len);
/* "…" with what is not printable escaped, cut; for messages. */
const char *text_show(const char *s, size_t len, char out[240]);

/* ---- vocabularies ---------------------------------------------------------------------------- */

struct made_token {
    const char *text;
    int type; /* 0 = normal */
    float score;
};
/* tokenizer.ggml.model, tokens, types and scores. */
void made_vocab(struct made *m, const char *model, const struct made_token *tokens, size_t count);
/* A byte-level vocabulary: the 256 bytes (but those in `without`), then the given tokens; ids of
 * bytes are the byte's place in that list. Merges as "left right". */
void made_byte_vocab(struct made *m, const char *pre, const char *without,
                     const struct made_token *tokens, size_t count, const char *const *merges,
                     size_t merges_count);
enum err_code made_tokenizer(const struct made *m, struct tokenizer **ret, struct err *e);
/* Encodes and compares with `count` ids, then frees. */
void text_expect_ids(const struct tokenizer *t, const char *text, size_t len, bool parse_special,
                     const int32_t *ids, size_t count);
/* The ids of a text, concatenated as bytes. Caller frees .data. */
struct buf text_round_trip(const struct tokenizer *t, const char *text, size_t len);

/* ---- templates ------------------------------------------------------------------------------- */

/* Parses and renders over `extra_json` (and its messages and tools if they are in it); the code,
 * and the text or the message in *ret. */
enum err_code text_render(const char *source, const char *extra_json, struct buf *ret,
                          struct err *e);
/* The template over {"i": 7, ...} (see text.c) must give exactly this. */
void text_gives(const char *source, const char *expected);
/* ... must fail with this code, and the message must contain this. */
void text_fails(const char *source, enum err_code code, const char *says);

#endif
