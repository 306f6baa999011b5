/* Constrained output, the inside: what grammars compile to and how they run. Private to experts/.
 *
 * A grammar is a recursive transition network over bytes: rules are chains of nodes that read a byte of
 * a range, fork, call a rule, or end. A matcher follows all possibilities at once as a set of (node,
 * stack of return nodes) pairs; stacks are shared lists with one copy of each, so equal situations have
 * equal numbers, and the sets become the states of a deterministic automaton that is built while it is
 * walked. What a state allows of the vocabulary is found by walking a trie of all tokens through it. */
#ifndef SWITCHYARD_EXPERTS_GRAMMAR_H
#define SWITCHYARD_EXPERTS_GRAMMAR_H

#include <stdatomic.h>

#include "experts/experts.h"

#define GRAMMAR_TEXT_MAX ((size_t)256 << 10) /* bytes of a schema or GBNF text */
#define GRAMMAR_NODES_MAX 400000U
#define GRAMMAR_RULES_MAX 16384U
#define GRAMMAR_NEST_MAX 96U    /* nesting of schemas and of groups */
#define GRAMMAR_DEPTH_MAX 250U  /* return nodes on a stack: about 120 levels of JSON */

enum gnode_kind { GNODE_END, GNODE_FAIL, GNODE_BYTE, GNODE_SPLIT, GNODE_CALL };

struct gnode {
    uint8_t kind, lo, hi;
    bool nullable;           /* the rule's end is reached without a byte */
    uint32_t next, arg;      /* SPLIT: the other way; CALL: the rule, next is where it returns to */
    uint16_t height;         /* stack that the shortest way to the rule's end needs; NEVER = no way */
    uint32_t bytes;          /* of the shortest text to the rule's end; at most GRAMMAR_BYTES_MAX */
};
#define GRAMMAR_BYTES_MAX 100000000U
#define GRAMMAR_NEVER UINT16_MAX

struct grammar {
    atomic_int refs;
    struct gnode *nodes;
    uint32_t *rules;         /* [rules_count] first node of each */
    uint32_t nodes_count, rules_count;
    uint32_t root;           /* rule */
};

/* ---- building (grammar.c): nodes are made from the end to the front, each knows what follows ---- */

enum gjson { GJSON_CHAR, GJSON_STRING, GJSON_NUMBER, GJSON_INTEGER, GJSON_VALUE, GJSON_OBJECT, GJSON_ARRAY,
                 GJSON_RULES };

#define GNODE_IDX_END 0U     /* these two exist in every grammar */
#define GNODE_IDX_FAIL 1U

struct gbuild {
    struct gnode *nodes;
    uint32_t *rules;
    uint32_t nodes_count, nodes_cap, rules_count, rules_cap;
    bool full;               /* a limit was met: gb_finish fails */
    uint32_t json[GJSON_RULES]; /* rule + 1, 0 = not made yet */
};
void gb_init(struct gbuild *b);
void gb_done(struct gbuild *b);
uint32_t gb_byte(struct gbuild *b, uint8_t lo, uint8_t hi, uint32_t next);
uint32_t gb_split(struct gbuild *b, uint32_t one, uint32_t other);
uint32_t gb_call(struct gbuild *b, uint32_t rule, uint32_t next);
uint32_t gb_text(struct gbuild *b, const char *text, size_t len, uint32_t next);
/* A fork whose ways are set later: loops. */
uint32_t gb_loop(struct gbuild *b);
void gb_loop_set(struct gbuild *b, uint32_t loop, uint32_t one, uint32_t other);
uint32_t gb_rule(struct gbuild *b);
void gb_rule_set(struct gbuild *b, uint32_t rule, uint32_t entry);
/* All byte strings of one length between lo and hi, where bytes range over floor..ceil; a '.' stands
 * before the last `point` bytes if that is not 0. Digits and UTF-8 are both of this kind. */
struct gspan {
    uint8_t floor, ceil;
    size_t point;
};
uint32_t gb_span(struct gbuild *b, const uint8_t *lo, const uint8_t *hi, size_t n, struct gspan span,
                 uint32_t next);
/* One code point of lo..hi as UTF-8; surrogates are left out. */
uint32_t gb_code_points(struct gbuild *b, uint32_t lo, uint32_t hi, uint32_t next);
/* `rule` min..max times, max UINT32_MAX = without end. */
uint32_t gb_repeat(struct gbuild *b, uint32_t rule, uint32_t min, uint32_t max, uint32_t next);
/* Checks left recursion, that some text exists, and the limits; takes the nodes out of b. */
enum err_code gb_finish(struct gbuild *b, uint32_t root, const char *param, struct grammar **ret,
                        struct err *e) BASE_NODISCARD;

/* ---- JSON's own parts (grammar_json.c) ---- */

uint32_t gb_json(struct gbuild *b, enum gjson which);    /* the rule, made when first asked for */
uint32_t gb_space(struct gbuild *b, uint32_t next);          /* nothing, a space or a newline */
uint32_t gb_int_range(struct gbuild *b, int64_t lo, int64_t hi, uint32_t next);
/* Decimals of lo..hi, both in units of 10^-point (point >= 1), and the whole numbers between. */
uint32_t gb_decimal_range(struct gbuild *b, int64_t lo, int64_t hi, unsigned point, uint32_t next);
/* One character of a string, in its shortest spelling. */
uint32_t gb_json_code_points(struct gbuild *b, uint32_t lo, uint32_t hi, uint32_t next);
/* A member name, quotes included, that is none of `names`. */
uint32_t gb_other_name(struct gbuild *b, const char *const *names, size_t count, uint32_t next);

/* ---- expressions (grammar_regex.c): the tree that patterns and GBNF share ---- */

enum gexpr_kind { GEXPR_EMPTY, GEXPR_SET, GEXPR_ANY, GEXPR_CAT, GEXPR_ALT, GEXPR_REPEAT, GEXPR_CALL,
                  GEXPR_START, GEXPR_STOP };
struct grange {
    uint32_t lo, hi;
};
struct gexpr {
    enum gexpr_kind kind;
    uint32_t min, max, rule;
    struct grange *ranges;   /* SET */
    size_t ranges_count;
    struct gexpr *child, *last, *sibling; /* CAT, ALT, REPEAT */
};
#define GEXPR_INF UINT32_MAX
#define GEXPR_REPEAT_MAX 100000U
struct gexpr *gexpr_new(struct arena *a, enum gexpr_kind kind);
void gexpr_add(struct gexpr *parent, struct gexpr *child);
/* `x` min to max times. What may be empty may as well be left out, so of that any fewer will do: else one state
 * would lead through all the empty ones. NULL = it may be empty, and max is beyond GEXPR_EMPTY_REPEAT_MAX. */
#define GEXPR_EMPTY_REPEAT_MAX 64U
struct gexpr *gexpr_repeat(struct arena *a, struct gexpr *x, uint32_t min, uint32_t max);
struct gset { /* while a class is read */
    struct grange range[256];
    size_t count;
    bool negated, ascii_only;
};
bool gset_add(struct gset *s, uint32_t lo, uint32_t hi); /* false = too many */
struct gexpr *gset_expr(struct arena *a, struct gset *s);
/* `json`: characters are spelled as inside a JSON string. */
uint32_t gexpr_emit(struct gbuild *b, const struct gexpr *x, bool json, uint32_t next);
/* {m}, {m,}, {m,n} after the brace; false if it is none. */
bool gexpr_counts(const char **at, const char *end, uint32_t *min, uint32_t *max);

/* The inside of a JSON string (quotes not included) that an ECMA-262 pattern finds. */
enum err_code gb_pattern(struct gbuild *b, const char *pattern, size_t len, uint32_t next,
                         const char *param, uint32_t *ret, struct err *e) BASE_NODISCARD;

/* ---- running (grammar_run.c, grammar_mask.c) ---- */

/* A vocabulary as a trie in the order of a walk. Immutable, any thread. */
struct grammar_vocab;
struct grammar_vocab *grammar_vocab_open(const struct tokenizer *t);
void grammar_vocab_close(struct grammar_vocab **v);

/* Where one sequence is. One thread; all memory is taken at open. */
struct grammar_state;
struct grammar_state *grammar_state_open(const struct grammar *g, const struct grammar_vocab *v);
void grammar_state_close(struct grammar_state **s);
void grammar_reset(struct grammar_state *s);
/* false = the bytes do not fit; the state stays as it was. */
bool grammar_accept_bytes(struct grammar_state *s, const char *bytes, size_t len);
/* The same with a token; an end token fits when the text is complete. */
bool grammar_accept(struct grammar_state *s, int32_t token);
bool grammar_complete(const struct grammar_state *s); /* the text so far is one of the grammar's */
/* Bit i of [vocab/32] words: token i may come next. Valid until the next call on `s`; returns how many
 * are set. */
const uint32_t *grammar_mask(struct grammar_state *s, uint32_t *ret_count);
/* The same, less the tokens after which the shortest rest has more than `bytes_left` bytes; where that would
 * leave none, those with the shortest rest. A vocabulary with a token for every byte can then always come to an end. */
const uint32_t *grammar_mask_within(struct grammar_state *s, uint32_t bytes_left, uint32_t *ret_count);

/* Between the two files. */
#define GRAMMAR_DEAD UINT32_MAX
/* Bounds what one mask or one text may cost: the engine's thread serves others too. */
void grammar_begin_work(struct grammar_state *s);
uint32_t grammar_state_now(const struct grammar_state *s);
/* The state after a byte, GRAMMAR_DEAD if none; *full is set when there is no room to say. */
uint32_t grammar_next(struct grammar_state *s, uint32_t from, uint8_t byte, bool *full);
bool grammar_state_accepts(const struct grammar_state *s, uint32_t state);
uint32_t grammar_state_bytes(const struct grammar_state *s, uint32_t state); /* of the shortest rest */
void grammar_flush(struct grammar_state *s); /* forget all states but the present one */
struct grammar_mask_cache;
struct grammar_mask_cache *grammar_mask_cache_open(const struct grammar_vocab *v);
void grammar_mask_cache_close(struct grammar_mask_cache **c);
void grammar_mask_cache_clear(struct grammar_mask_cache *c);
const uint32_t *grammar_mask_fill(struct grammar_mask_cache *c, const struct grammar_vocab *v,
                                  struct grammar_state *s, uint32_t bytes_left, uint32_t *ret_count);
const char *grammar_vocab_bytes(const struct grammar_vocab *v, int32_t token, size_t *ret_len);
bool grammar_vocab_is_end(const struct grammar_vocab *v, int32_t token);

#endif
