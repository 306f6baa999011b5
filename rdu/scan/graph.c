/* Building and checking graphs of loops over a table. */
#include <stdlib.h>
#include <string.h>

#include "rdu/scan/scan.h"

struct scan_graph *scan_graph_open(const char *name)
{
    struct scan_graph *g = mem_alloc(sizeof(*g));
    snprintf(g->name, sizeof(g->name), "%s", name);
    return g;
}

void scan_graph_close(struct scan_graph **g)
{
    if (*g == NULL)
        return;
    for (uint32_t i = 0; i < (*g)->loops; i++) {
        ir_body_done(&(*g)->loop[i].body);
        free((*g)->loop[i].elems);
    }
    free(*g);
    *g = NULL;
}

uint32_t scan_column(struct scan_graph *g, enum ir_elem elem)
{
    if (g->columns == SCAN_COLUMNS) {
        g->failed = true;
        return 0;
    }
    g->column[g->columns] = elem;
    return g->columns++;
}

struct ir_body *scan_begin(struct scan_graph *g)
{
    if (g->loops == SCAN_ELEMS) {
        g->failed = true;
        return &g->loop[g->loops - 1].body;
    }
    struct scan_loop *l = &g->loop[g->loops++];
    ir_body_init(&l->body);
    return &l->body;
}

static const struct scan_elem *elem_of(const struct scan_graph *g, uint32_t id,
                                       const struct scan_loop **ret_loop)
{
    for (uint32_t i = 0; i < g->loops; i++) {
        for (uint32_t k = 0; k < g->loop[i].count; k++) {
            *ret_loop = &g->loop[i];
            if (g->loop[i].elems[k].id == id)
                return &g->loop[i].elems[k];
        }
    }
    return NULL;
}

enum ir_type scan_operand_type(const struct scan_graph *g, uint32_t operand)
{
    if (operand < SCAN_COLUMNS)
        return operand < g->columns ? ir_elem_type(g->column[operand]) : IR_TYPE_NONE;
    const struct scan_loop *l = NULL;
    const struct scan_elem *elem = elem_of(g, operand - SCAN_COLUMNS, &l);
    if (elem == NULL)
        return IR_TYPE_NONE;
    return elem->collect ? (enum ir_type)l->body.ops[elem->value[0]].type : IR_TYPE_F32;
}

static struct ir_body *current(struct scan_graph *g)
{
    return &g->loop[g->loops - 1].body;
}

uint32_t scan_load(struct scan_graph *g, uint32_t operand)
{
    struct ir_body *b = current(g);
    return ir_load1(b, operand, scan_operand_type(g, operand), ir_index(b, 0));
}

uint32_t scan_load_sum(struct scan_graph *g, uint32_t elem, int32_t i)
{
    struct ir_body *b = current(g);
    return ir_load1(b, SCAN_COLUMNS + elem, IR_TYPE_F32, ir_i32(b, i));
}

static uint32_t add_elem(struct scan_graph *g, struct scan_elem elem)
{
    if (g->elems == SCAN_ELEMS) {
        g->failed = true;
        return 0;
    }
    struct scan_loop *l = &g->loop[g->loops - 1];
    elem.id = g->elems++;
    l->elems = mem_grow(l->elems, l->count + 1, sizeof(*l->elems));
    l->elems[l->count++] = elem;
    return elem.id;
}

uint32_t scan_collect(struct scan_graph *g, uint32_t value)
{
    return add_elem(g, (struct scan_elem){.collect = true,
                                          .guard = IR_NONE,
                                          .key = IR_NONE,
                                          .keys = 1,
                                          .value = {value},
                                          .values = 1});
}

uint32_t scan_reduce(struct scan_graph *g, const struct scan_elem *elem)
{
    return add_elem(g, *elem);
}

/* ---- checking -------------------------------------------------------------------------------- */

struct check {
    const struct scan_graph *g;
    const struct ir_body *b;
    uint32_t loop;
    struct err *e;
};

static enum err_code wrong(const struct check *c, const char *what, uint32_t id)
{
    return err_set(c->e, ERR_INVALID, "graph %s, loop %u: %s (%%%u)", c->g->name, c->loop, what,
                   id);
}

/* An earlier loop's elem, read as its kind allows. */
static enum err_code check_load(const struct check *c, uint32_t id)
{
    const struct ir_op *op = &c->b->ops[id], *at = &c->b->ops[op->arg[0]];
    bool here = at->code == IR_INDEX && at->imm == 0;
    uint32_t operand = (uint32_t)op->imm;
    if (op->arg[1] != IR_NONE)
        return wrong(c, "a table is read by one index", id);
    if (scan_operand_type(c->g, operand) != (enum ir_type)op->type || op->type == IR_TYPE_NONE)
        return wrong(c, "no such operand, or of another type", id);
    if (operand < SCAN_COLUMNS)
        return here ? ERR_OK : wrong(c, "a column is read at the row only", id);
    const struct scan_loop *from = NULL;
    const struct scan_elem *elem = elem_of(c->g, operand - SCAN_COLUMNS, &from);
    if (elem == NULL || from >= &c->g->loop[c->loop])
        return wrong(c, "reads what no earlier loop made", id);
    if (elem->collect)
        return here ? ERR_OK : wrong(c, "a collected value is read at the row only", id);
    if (at->code != IR_CONST || at->imm < 0 || (uint32_t)at->imm >= elem->keys * elem->values)
        return wrong(c, "a sum is read at a constant index within [keys, values]", id);
    return ERR_OK;
}

/* An operation the interpreter has arithmetic for, over arguments of its types. */
static enum err_code check_op(const struct check *c, uint32_t id)
{
    const struct ir_op *op = &c->b->ops[id];
    if (op->code == IR_CONST || (op->code == IR_INDEX && op->imm == 0))
        return ERR_OK;
    if (op->code == IR_LOAD)
        return check_load(c, id);
    uint32_t arg[5], args = ir_op_args(op, arg);
    if (op->code >= IR_CODES || op->code == IR_CLAMP || args == 0 ||
        args != ir_code_args(op->code) ||
        ir_ops()->fn[op->code][c->b->ops[arg[0]].type & 3u][0] == NULL)
        return wrong(c, "no operation of a table's loop", id);
    for (uint32_t i = 0; i < args; i++) {
        uint32_t like = op->code == IR_SELECT && i > 0 ? arg[1] : arg[0];
        if (arg[i] >= id || c->b->ops[arg[i]].type != c->b->ops[like].type)
            return wrong(c, "arguments of different types", id);
    }
    return ERR_OK;
}

static bool is_type(const struct check *c, uint32_t id, enum ir_type type)
{
    return id < c->b->count && c->b->ops[id].type == (uint32_t)type;
}

static enum err_code check_elem(const struct check *c, const struct scan_elem *elem)
{
    if (elem->values == 0 || elem->values > SCAN_VALUES || elem->keys == 0 ||
        elem->keys > SCAN_KEYS)
        return wrong(c, "values or keys out of bounds in elem", elem->id);
    for (uint32_t i = 0; i < elem->values; i++) {
        if (elem->value[i] >= c->b->count ||
            (!elem->collect && !is_type(c, elem->value[i], IR_TYPE_F32)))
            return wrong(c, "only f32 is summed, in elem", elem->id);
    }
    if (elem->guard != IR_NONE && (elem->collect || !is_type(c, elem->guard, IR_TYPE_BOOL)))
        return wrong(c, "a guard is a bool of a reduce, in elem", elem->id);
    if (elem->key != IR_NONE ? !is_type(c, elem->key, IR_TYPE_I32) : elem->keys != 1)
        return wrong(c, "a key is an i32, and without one there is one key, in elem", elem->id);
    return ERR_OK;
}

enum err_code scan_verify(const struct scan_graph *g, struct err *e)
{
    if (g->failed)
        return err_set(e, ERR_INVALID, "graph %s: more than %d columns or %d loops or elems",
                       g->name, SCAN_COLUMNS, SCAN_ELEMS);
    enum err_code code = ERR_OK;
    for (uint32_t i = 0; i < g->loops && code == ERR_OK; i++) {
        const struct scan_loop *l = &g->loop[i];
        struct check c = {.g = g, .b = &l->body, .loop = i, .e = e};
        if (l->body.failed || l->count == 0)
            return wrong(&c, "a loop that makes nothing, or with too many operations", 0);
        for (uint32_t k = 0; k < l->body.count && code == ERR_OK; k++)
            code = check_op(&c, k);
        for (uint32_t k = 0; k < l->count && code == ERR_OK; k++)
            code = check_elem(&c, &l->elems[k]);
    }
    return code;
}
