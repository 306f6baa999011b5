/* One loop of several. All loops of a graph have one domain, the rows, and read each other at the
 * row itself; so Delite's two rules come down to this: two loops may become one (horizontally: same
 * domain; vertically: the reader takes the value instead of loading it) unless one needs a finished
 * sum of the other, which is known behind the last row only. The gate: fusing must move fewer
 * bytes, and the fused loop's values must fit the first-level cache (scan_block_of). Greedy, to a
 * fixed point. */
#include <stdlib.h>
#include <string.h>

#include "rdu/scan/scan.h"

static const struct scan_elem *find_elem(const struct scan_loop *l, uint32_t id)
{
    for (uint32_t i = 0; i < l->count; i++) {
        if (l->elems[i].id == id)
            return &l->elems[i];
    }
    return NULL;
}

/* The elem of `from` that the op loads, or NULL. */
static const struct scan_elem *loaded_of(const struct scan_loop *from, const struct ir_op *op)
{
    if (op->code != IR_LOAD || op->imm < SCAN_COLUMNS)
        return NULL;
    return find_elem(from, (uint32_t)op->imm - SCAN_COLUMNS);
}

static bool reads(const struct scan_loop *l, const struct scan_loop *from)
{
    for (uint32_t i = 0; i < l->body.count; i++) {
        if (loaded_of(from, &l->body.ops[i]))
            return true;
    }
    return false;
}

/* A finished sum of it, not a value of the row. */
static bool reads_sum(const struct scan_loop *l, const struct scan_loop *from)
{
    for (uint32_t i = 0; i < l->body.count; i++) {
        const struct scan_elem *e = loaded_of(from, &l->body.ops[i]);
        if (e && !e->collect)
            return true;
    }
    return false;
}

static bool is_read_elsewhere(const struct scan_graph *g, uint32_t id, uint32_t a, uint32_t b)
{
    for (uint32_t i = 0; i < g->loops; i++) {
        const struct ir_body *body = &g->loop[i].body;
        for (uint32_t k = 0; i != a && i != b && k < body->count; k++) {
            if (body->ops[k].code == IR_LOAD && body->ops[k].imm == (int32_t)(SCAN_COLUMNS + id))
                return true;
        }
    }
    return false;
}

/* ---- merging --------------------------------------------------------------------------------- */

/* Append the operations of `l`; a load of what `to` makes becomes the value itself. */
static void append(struct scan_loop *to, const struct scan_loop *l)
{
    uint32_t *map = mem_array(BASE_MAX(l->body.count, 1u), sizeof(*map));
    for (uint32_t i = 0; i < l->body.count; i++) {
        const struct ir_op *op = &l->body.ops[i];
        uint32_t arg[5], args = 0;
        for (; args < BASE_COUNT(op->arg) && op->arg[args] != IR_NONE; args++)
            arg[args] = map[op->arg[args]];
        const struct scan_elem *made = loaded_of(to, op);
        map[i] = made ? made->value[0]
                      : ir_emit(&to->body, (enum ir_code)op->code, (enum ir_type)op->type, op->imm,
                                arg, args);
    }
    to->elems = mem_grow(to->elems, to->count + l->count, sizeof(*to->elems));
    for (uint32_t i = 0; i < l->count; i++) {
        struct scan_elem e = l->elems[i];
        for (uint32_t k = 0; k < e.values; k++)
            e.value[k] = map[e.value[k]];
        e.guard = e.guard == IR_NONE ? IR_NONE : map[e.guard];
        e.key = e.key == IR_NONE ? IR_NONE : map[e.key];
        to->elems[to->count++] = e;
    }
    free(map);
}

static void drop_loop(struct scan_graph *g, uint32_t i)
{
    ir_body_done(&g->loop[i].body);
    free(g->loop[i].elems);
    memmove(&g->loop[i], &g->loop[i + 1], (g->loops - i - 1) * sizeof(g->loop[i]));
    g->loops--;
    memset(&g->loop[g->loops], 0, sizeof(g->loop[g->loops]));
}

static bool is_needed(const struct scan_graph *g, const struct scan_elem *e, uint32_t a, uint32_t b)
{
    return !e->collect || g->wanted[e->id] || is_read_elsewhere(g, e->id, a, b);
}

/* Loops i < j as one. Collected values that only they load, and nobody wants, are not stored. */
static struct scan_loop merged(const struct scan_graph *g, uint32_t i, uint32_t j)
{
    struct scan_loop both = {0};
    append(&both, &g->loop[i]);
    append(&both, &g->loop[j]);
    uint32_t kept = 0;
    for (uint32_t k = 0; k < both.count; k++) {
        struct scan_elem e = both.elems[k];
        if (is_needed(g, &e, i, j))
            both.elems[kept++] = e;
    }
    both.count = kept;
    return both;
}

/* Bytes per row that are neither stored nor loaded again: values of i that j loads, columns both
 * do. */
static uint32_t saved_bytes(const struct scan_loop *i, const struct scan_loop *j)
{
    uint32_t bytes = 0;
    for (uint32_t k = 0; k < j->body.count; k++) {
        const struct ir_op *op = &j->body.ops[k];
        if (op->code != IR_LOAD)
            continue;
        bool shared = loaded_of(i, op) != NULL;
        for (uint32_t m = 0; m < i->body.count; m++)
            shared |= i->body.ops[m].code == IR_LOAD && i->body.ops[m].imm == op->imm;
        bytes += shared ? (uint32_t)sizeof(float) : 0;
    }
    return bytes;
}

/* May loop j run as part of i? Not with a loop between them that waits for i and that j waits for.
 */
static bool is_legal(const struct scan_graph *g, uint32_t i, uint32_t j)
{
    if (reads_sum(&g->loop[j], &g->loop[i]))
        return false;
    for (uint32_t k = i + 1; k < j; k++) {
        if (reads(&g->loop[j], &g->loop[k]))
            return false; /* it joins one of the two itself, or must stay between them */
    }
    return true;
}

static bool try_pair(struct scan_graph *g, uint32_t i, uint32_t j, struct buf *report)
{
    uint32_t bytes = saved_bytes(&g->loop[i], &g->loop[j]);
    if (bytes == 0 || !is_legal(g, i, j))
        return false;
    struct scan_loop both = merged(g, i, j);
    struct scan_block b = scan_block_of(g, &both);
    bool worth = b.rows > 0 && !both.body.failed;
    if (report)
        buf_printf(report,
                   "  loop %u %s loop %u: %u bytes per row less, %u registers, blocks of %u\n", j,
                   worth ? "joins" : "stays out of", i, bytes, b.registers, b.rows);
    struct scan_loop *out = worth ? &g->loop[i] : &both, dead = *out;
    if (worth)
        *out = both;
    ir_body_done(&dead.body);
    free(dead.elems);
    if (!worth)
        return false;
    drop_loop(g, j);
    return true;
}

static bool fuse_one(struct scan_graph *g, struct buf *report)
{
    for (uint32_t j = 1; j < g->loops; j++) {
        for (uint32_t i = j; i-- > 0;) {
            if (try_pair(g, i, j, report))
                return true;
        }
    }
    return false;
}

/* What nobody reads is not made. From the last loop on, as a reader may go first. */
static void drop_dead(struct scan_graph *g)
{
    for (uint32_t i = g->loops; i-- > 0;) {
        struct scan_loop *l = &g->loop[i];
        uint32_t kept = 0;
        for (uint32_t k = 0; k < l->count; k++) {
            struct scan_elem e = l->elems[k];
            if (is_needed(g, &e, i, i))
                l->elems[kept++] = e;
        }
        l->count = kept;
        if (kept == 0)
            drop_loop(g, i);
    }
}

struct scan_graph *scan_fuse(const struct scan_graph *g, struct buf *report)
{
    struct scan_graph *f = scan_graph_open(g->name);
    memcpy(f->column, g->column, sizeof(g->column));
    memcpy(f->wanted, g->wanted, sizeof(g->wanted));
    f->columns = g->columns;
    f->elems = g->elems;
    for (uint32_t i = 0; i < g->loops; i++) {
        scan_begin(f);
        append(&f->loop[i], &g->loop[i]);
    }
    drop_dead(f);
    while (fuse_one(f, report))
        ;
    return f;
}
