/* Owner of nodes: hash-consing (which is common-subexpression elimination), slots, constant tables
 * and the sticky error of a graph under construction. Nothing here knows an operator. */
#include <stdlib.h>
#include <string.h>

#include "rdu/ir/ir.h"

/* ---- shapes ---------------------------------------------------------------------------------- */

struct ir_shape ir_shape2(enum ir_elem elem, int32_t rows, int32_t cols)
{
    struct ir_shape s = {.dim = {rows, cols, 1}, .rank = 2, .elem = elem};
    return s;
}

struct ir_shape ir_shape3(enum ir_elem elem, int32_t d0, int32_t d1, int32_t d2)
{
    struct ir_shape s = {.dim = {d0, d1, d2}, .rank = 3, .elem = elem};
    return s;
}

uint32_t ir_shape_width(const struct ir_shape *s)
{
    if (s->dim[1] <= 0 || s->dim[2] <= 0)
        return 0;
    uint64_t width = (uint64_t)s->dim[1] * (uint64_t)s->dim[2];
    return width <= INT32_MAX ? (uint32_t)width : 0;
}

bool ir_shape_same_rows(const struct ir_shape *a, const struct ir_shape *b)
{
    return a->elem == b->elem && a->dim[0] == b->dim[0] && ir_shape_width(a) != 0 &&
           ir_shape_width(a) == ir_shape_width(b);
}

enum ir_type ir_elem_type(uint32_t elem)
{
    if (elem == IR_ELEM_VOID)
        return IR_TYPE_NONE;
    return elem == IR_ELEM_F32 ? IR_TYPE_F32 : IR_TYPE_I32;
}

size_t ir_elem_bytes(uint32_t elem)
{
    if (elem == IR_ELEM_VOID)
        return 0;
    return elem == IR_ELEM_I8 ? 1 : 4;
}

/* ---- errors ---------------------------------------------------------------------------------- */

void ir_fail(struct rdu_graph *g, const char *fmt, ...)
{
    if (ir_failed(g))
        return;
    char text[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    err_set(&g->err, ERR_INVALID, "graph %s: %s", g->name, text);
}

bool ir_failed(const struct rdu_graph *g)
{
    return g->err.code != ERR_OK;
}

/* ---- open, close ----------------------------------------------------------------------------- */

struct rdu_graph *rdu_graph_open(const char *name, enum rdu_numerics numerics)
{
    struct rdu_graph *g = mem_alloc(sizeof(*g));
    g->name = mem_strdup(name ? name : "graph");
    g->numerics = numerics;
    g->current = -1;
    return g;
}

void rdu_graph_close(struct rdu_graph **g)
{
    if (*g == NULL)
        return;
    ir_exec_free(*g);
    for (uint32_t i = 0; i < (*g)->count; i++)
        ir_body_done(&(*g)->nodes[i].body);
    for (int scope = 0; scope < 2; scope++) {
        for (uint32_t i = 0; i < (*g)->slots[scope].count; i++)
            free((char *)(uintptr_t)(*g)->slots[scope].slots[i].name);
        free((*g)->slots[scope].slots);
    }
    for (uint32_t i = 0; i < (*g)->tables_count; i++) {
        free((*g)->tables[i].name);
        free((*g)->tables[i].data);
    }
    free((*g)->tables);
    free((*g)->nodes);
    free((*g)->index);
    free((*g)->name);
    free(*g);
    *g = NULL;
}

static uint32_t add_slot(struct rdu_graph *g, int scope, const char *name, uint32_t rows,
                         uint32_t cols)
{
    struct rdu_slot_list *l = &g->slots[scope];
    if (l->count == g->slots_cap[scope]) {
        g->slots_cap[scope] = g->slots_cap[scope] > 0 ? g->slots_cap[scope] * 2 : 16;
        l->slots = mem_grow(l->slots, g->slots_cap[scope], sizeof(*l->slots));
    }
    struct rdu_slot_info *s = &l->slots[l->count];
    s->name = mem_strdup(name);
    s->rows = rows;
    s->cols = cols;
    return l->count++;
}

static uint32_t add_table(struct rdu_graph *g, const char *name, const float *data, uint32_t rows,
                          uint32_t cols)
{
    g->tables = mem_grow(g->tables, g->tables_count + 1, sizeof(*g->tables));
    struct ir_table *t = &g->tables[g->tables_count];
    size_t count = (size_t)rows * cols;
    t->name = mem_strdup(name);
    t->data = mem_array(count, sizeof(float));
    memcpy(t->data, data, count * sizeof(float));
    t->rows = rows;
    t->cols = cols;
    return g->tables_count++;
}

struct rdu_graph *ir_graph_like(const struct rdu_graph *g)
{
    struct rdu_graph *n = rdu_graph_open(g->name, g->numerics);
    for (int scope = 0; scope < 2; scope++) {
        for (uint32_t i = 0; i < g->slots[scope].count; i++) {
            const struct rdu_slot_info *s = &g->slots[scope].slots[i];
            add_slot(n, scope, s->name, s->rows, s->cols);
        }
    }
    for (uint32_t i = 0; i < g->tables_count; i++)
        add_table(n, g->tables[i].name, g->tables[i].data, g->tables[i].rows, g->tables[i].cols);
    n->kv_heads = g->kv_heads;
    n->head_dim = g->head_dim;
    for (int s = 0; s < RDU_SECTIONS; s++) {
        n->section[s].begun = g->section[s].begun;
        n->section[s].ended = g->section[s].ended;
        n->section[s].width = g->section[s].width;
    }
    return n;
}

/* ---- nodes ----------------------------------------------------------------------------------- */

void ir_key_init(struct ir_key *key, uint32_t kind, uint32_t section, struct ir_shape shape)
{
    memset(key, 0, sizeof(*key));
    key->kind = kind;
    key->section = section;
    key->shape = shape;
    key->slot = IR_NONE;
    for (int i = 0; i < IR_OPERANDS; i++)
        key->operand[i] = IR_NONE;
}

static void index_insert(struct rdu_graph *g, uint32_t id)
{
    uint32_t mask = g->index_cap - 1, at = (uint32_t)g->nodes[id].hash & mask;
    while (g->index[at] != 0)
        at = (at + 1) & mask;
    g->index[at] = id + 1;
}

static void index_grow(struct rdu_graph *g)
{
    if (g->index_cap > 0 && g->count * 2 < g->index_cap)
        return;
    free(g->index);
    g->index_cap = g->index_cap > 0 ? g->index_cap * 2 : 64;
    g->index = mem_array(g->index_cap, sizeof(*g->index));
    for (uint32_t i = 0; i < g->count; i++)
        index_insert(g, i);
}

static uint32_t find_equal(const struct rdu_graph *g, const struct ir_node *n)
{
    if (g->index_cap == 0)
        return IR_NONE;
    uint32_t mask = g->index_cap - 1;
    for (uint32_t at = (uint32_t)n->hash & mask; g->index[at] != 0; at = (at + 1) & mask) {
        const struct ir_node *o = &g->nodes[g->index[at] - 1];
        if (o->hash == n->hash && memcmp(&o->key, &n->key, sizeof(o->key)) == 0 &&
            ir_body_equal(&o->body, &n->body))
            return g->index[at] - 1;
    }
    return IR_NONE;
}

uint32_t ir_node_add(struct rdu_graph *g, const struct ir_key *key, struct ir_body *body)
{
    struct ir_node n;
    memset(&n, 0, sizeof(n));
    n.key = *key;
    n.body.result = IR_NONE;
    if (body) {
        n.body = *body;
        memset(body, 0, sizeof(*body));
        if (n.body.failed || n.body.depth != 0)
            ir_fail(g, "a loop body is too large or has an open reduce");
    }
    n.hash = hash64_of(&n.key, sizeof(n.key), ir_body_hash(&n.body));
    uint32_t same = ir_failed(g) ? 0 : find_equal(g, &n);
    if (g->count >= IR_NODES_MAX)
        ir_fail(g, "more than %d nodes", IR_NODES_MAX);
    if (ir_failed(g) || same != IR_NONE) {
        ir_body_done(&n.body);
        return same;
    }
    if (g->count == g->cap) {
        g->cap = g->cap > 0 ? g->cap * 2 : 64;
        g->nodes = mem_grow(g->nodes, g->cap, sizeof(*g->nodes));
    }
    index_grow(g);
    g->nodes[g->count] = n;
    index_insert(g, g->count);
    return g->count++;
}

uint32_t ir_node_input(struct rdu_graph *g, enum ir_input which)
{
    const struct ir_section *s = &g->section[g->current];
    struct ir_shape shape = {.dim = {RDU_DIM_TOKENS, 1, 1}, .rank = 1, .elem = IR_ELEM_I32};
    if (which == IR_INPUT_X)
        shape = ir_shape2(IR_ELEM_F32, RDU_DIM_TOKENS, (int32_t)s->width);
    else if (which == IR_INPUT_OUTS)
        shape.dim[0] = RDU_DIM_OUTS;
    struct ir_key key;
    ir_key_init(&key, IR_INPUT, (uint32_t)g->current, shape);
    key.which = which;
    return ir_node_add(g, &key, NULL);
}

uint32_t ir_node_loop(struct rdu_graph *g, struct ir_shape shape, const uint32_t *operand,
                      uint32_t operands, struct ir_body *body, const struct ir_hint *hint)
{
    struct ir_key key;
    if (operands > IR_OPERANDS || g->current < 0) {
        ir_fail(g, "a loop with %u operands outside a section or beyond the limit of %d", operands,
                IR_OPERANDS);
        ir_body_done(body);
        return 0;
    }
    ir_key_init(&key, IR_LOOP, (uint32_t)g->current, shape);
    for (uint32_t i = 0; i < operands; i++)
        key.operand[i] = operand[i];
    key.operands = operands;
    if (hint)
        key.hint = *hint;
    return ir_node_add(g, &key, body);
}

/* ---- slots and tables ------------------------------------------------------------------------ */

struct rdu_slot_list *ir_slots(struct rdu_graph *g, uint32_t section)
{
    return &g->slots[section == RDU_SECTION_LAYER];
}

const struct rdu_slot_info *ir_slot(const struct rdu_graph *g, uint32_t section, uint32_t slot)
{
    const struct rdu_slot_list *l = &g->slots[section == RDU_SECTION_LAYER];
    return slot < l->count ? &l->slots[slot] : NULL;
}

uint32_t rdu_slot(struct rdu_graph *g, const char *name, uint32_t rows, uint32_t cols)
{
    int scope = g->current == RDU_SECTION_LAYER;
    if (rows == 0 || cols == 0 || rows > INT32_MAX || cols > INT32_MAX) {
        ir_fail(g, "slot %s is empty or too large (%u x %u)", name, rows, cols);
        return 0;
    }
    for (uint32_t i = 0; i < g->slots[scope].count; i++) {
        const struct rdu_slot_info *s = &g->slots[scope].slots[i];
        if (strcmp(s->name, name) != 0)
            continue;
        if (s->rows != rows || s->cols != cols)
            ir_fail(g, "slot %s is used as [%u, %u] and as [%u, %u]", name, s->rows, s->cols, rows,
                    cols);
        return i;
    }
    return add_slot(g, scope, name, rows, cols);
}

uint32_t rdu_const(struct rdu_graph *g, const char *name, const float *data, uint32_t rows,
                   uint32_t cols)
{
    size_t count;
    if (rows == 0 || cols == 0 || rows > INT32_MAX || cols > INT32_MAX ||
        !size_mul(rows, cols, &count) || !size_mul(count, sizeof(float), &count)) {
        ir_fail(g, "constant %s is empty or too large (%u x %u)", name, rows, cols);
        return 0;
    }
    uint32_t table = 0;
    for (; table < g->tables_count; table++) {
        const struct ir_table *t = &g->tables[table];
        if (t->rows == rows && t->cols == cols && memcmp(t->data, data, count) == 0)
            break;
    }
    if (table == g->tables_count)
        table = add_table(g, name, data, rows, cols);
    struct ir_key key;
    ir_key_init(&key, IR_TABLE, 0, ir_shape2(IR_ELEM_F32, (int32_t)rows, (int32_t)cols));
    key.which = table;
    return ir_node_add(g, &key, NULL);
}

/* ---- sections -------------------------------------------------------------------------------- */

static const char *const section_name[RDU_SECTIONS] = {"embed", "layer", "head"};

uint32_t rdu_graph_begin(struct rdu_graph *g, enum rdu_section section, uint32_t width)
{
    if ((unsigned)section >= RDU_SECTIONS || g->section[section].begun || g->current >= 0) {
        ir_fail(g, "section %d begun twice or inside another", (int)section);
        return 0;
    }
    if (section != RDU_SECTION_EMBED && (width == 0 || width > INT32_MAX / 4)) {
        ir_fail(g, "section %s: width %u", section_name[section], width);
        return 0;
    }
    g->current = (int)section;
    g->section[section].begun = true;
    g->section[section].width = section == RDU_SECTION_EMBED ? 0 : width;
    enum ir_input which = section == RDU_SECTION_EMBED ? IR_INPUT_TOKENS : IR_INPUT_X;
    return g->section[section].input = ir_node_input(g, which);
}

void rdu_graph_end(struct rdu_graph *g, uint32_t result)
{
    if (g->current < 0) {
        ir_fail(g, "a section ended that was not begun");
        return;
    }
    if (!ir_failed(g) && result >= g->count)
        ir_fail(g, "section %s ends with value %u, which does not exist", section_name[g->current],
                result);
    g->section[g->current].ended = true;
    g->section[g->current].result = result;
    g->current = -1;
}
