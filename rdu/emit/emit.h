/* From programs and expressions to C text, and from text to loaded functions. Private to rdu/. Text
 * is a function of the IR alone (names that came from files never enter it), so equal programs
 * share one object, and a text is its own key. */
#ifndef SWITCHYARD_RDU_EMIT_H
#define SWITCHYARD_RDU_EMIT_H

#include <stdatomic.h>

#include "rdu/emit/abi.h"
#include "rdu/ir/ir.h"

#define EMIT_VERSION 1

/* The common head of every unit. */
void emit_prelude(struct buf *out);

/* ---- bodies (body.c) ---- */

/* Where an operand or the result of a Loop lies: C expressions, evaluated in the function they are
 * put in. Element (row, col) is base[row * stride + col]. */
struct emit_tensor {
    char base[96], stride[48];
    uint32_t elem; /* enum ir_elem; VOID = not there */
    uint32_t dim2; /* size of the last of three dimensions */
};
struct emit_loop {
    const struct ir_body *body;
    const struct ir_shape *shape;
    const struct emit_tensor *operand; /* [IR_OPERANDS] */
    struct emit_tensor out;
    const char *tokens, *outs; /* C expressions of the symbolic sizes */
    const char *from, *to;     /* range of the second dimension; NULL = all of it */
};
/* Can it be emitted? Loops over weights and KV are leaves' business. */
bool emit_is_plain(const struct ir_body *b);
/* Statements for one row: the variable i0 is in scope. */
void emit_row(const struct emit_loop *l, struct buf *out);
/* One operation as a C expression of its arguments' names; NULL if it has none of this form. */
char *emit_scalar(uint32_t code, uint32_t arg_type, const char *a, const char *b, const char *c);
void emit_const(uint32_t type, int32_t bits, struct buf *out);

/* ---- units ---- */

/* The whole step of a program planned as fused; ERR_UNSUPPORTED names the launch that cannot be
 * emitted. */
enum err_code emit_program(const struct rdu_program *p, struct buf *out,
                           struct err *e) BASE_NODISCARD;
struct rdu_expr;
void emit_expr(const struct rdu_expr *x, struct buf *out);

/* ---- compiler and cache (cc.c, cache.c) ---- */

struct emit_cc {
    char *path;     /* of the compiler, resolved; NULL = none */
    char *identity; /* path, size and time of change: what makes it another compiler */
    const char *flags[16];
    uint32_t flags_count;
    uint32_t timeout_ms;
};
/* Look `name` up in PATH; a compiler that is not there leaves path NULL. `isa` as of kernels. */
void emit_cc_init(struct emit_cc *cc, const char *name, const char *isa, uint32_t timeout_ms);
void emit_cc_done(struct emit_cc *cc);
/* Compile `text` in a new private directory under `dir`; the object's bytes. Blocks; *stop true
 * ends it. */
enum err_code emit_cc_run(const struct emit_cc *cc, const char *dir, const struct buf *text,
                          const atomic_bool *stop, struct buf *ret_object,
                          struct err *e) BASE_NODISCARD;

struct emit_cache {
    char *dir;
    uint64_t max_bytes;
};
/* A loaded object. Its memory file stays open: dlopen takes two files of one path for the same
 * object, and the path is the descriptor's. */
struct emit_object {
    void *handle; /* NULL = none */
    int fd;
};
struct hash128 emit_key(const struct emit_cc *cc, const struct buf *text);
/* Load the object of a key: *ret NULL if there is none. An object that is not ours or not whole is
 * removed and says so in *e with ERR_CORRUPT. */
enum err_code emit_cache_load(const struct emit_cache *c, struct hash128 key,
                              struct emit_object *ret, struct err *e) BASE_NODISCARD;
enum err_code emit_cache_store(const struct emit_cache *c, struct hash128 key,
                               const struct buf *object, struct err *e) BASE_NODISCARD;
/* Load bytes that could not be stored. */
enum err_code emit_load_bytes(const struct buf *object, struct emit_object *ret,
                              struct err *e) BASE_NODISCARD;
void emit_unload(struct emit_object *o);

#endif
