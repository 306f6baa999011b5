/* Keeps text that clients send from forging control tokens. A chat template writes control tokens
 * such as <|im_end|> as text, so the rendered prompt must be tokenised with them recognised; a
 * message that contains the same characters would end its own turn and start one as "system".
 *
 * Before rendering, every control token's text inside client strings gets a mark after its first
 * character: a Unicode noncharacter that none of the strings contains. Templates carry it through
 * like any character. The rendered text is cut at the marks and the pieces are tokenised one by
 * one: the model reads the same characters, but as ordinary tokens. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_API_GUARD_H
#define SWITCHYARD_DAEMON_API_GUARD_H

#include <jansson.h>

#include "experts/experts.h"

#define GUARD_MARK_BYTES 3

/* The control tokens of one tokenizer. Immutable; any thread. */
struct guard;
struct guard *guard_open(const struct tokenizer *t);
void guard_close(struct guard **g);
/* Bytes of the longest token: a text of n bytes has at least n over this many tokens. */
size_t guard_longest_token(const struct guard *g);

/* Some string in `v`, keys included, contains a control token's text. */
bool guard_touches(const struct guard *g, const json_t *v);
/* A mark that does not occur in `v`. */
void guard_pick_mark(const json_t *v, char mark[GUARD_MARK_BYTES + 1]);
/* A deep copy of `v` with the mark set; a new reference to `v` itself where nothing is touched. */
json_t *guard_mark(const struct guard *g, const json_t *v, const char *mark);
/* Tokenise with control tokens recognised, cutting at each mark; mark NULL = no cuts. */
enum err_code guard_encode(const struct tokenizer *t, const char *text, size_t len,
                           const char *mark, struct token_list *ret, struct err *e) BASE_NODISCARD;

#endif
