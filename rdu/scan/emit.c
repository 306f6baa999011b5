/* A graph of loops over a table as C: one function per loop, which runs one chunk of rows. Values
 * are single-assignment variables; sums are 16 lanes, so that a compiler may use vectors without
 * changing a bit (rule 13). How columns lie is part of the text, where they lie is an argument. */
#include <stdlib.h>

#include "rdu/emit/emit.h"
#include "rdu/scan/scan.h"

struct emit {
    const struct scan_graph *g;
    const struct scan_loop *l;
    const struct scan_source *columns;
    const enum scan_home *home;
    struct buf *out;
};

static const char *c_type(uint32_t type)
{
    return type == IR_TYPE_F32 ? "float" : "int32_t";
}

static void emit_load(const struct emit *m, uint32_t id)
{
    const struct ir_op *op = &m->l->body.ops[id];
    uint32_t operand = (uint32_t)op->imm;
    if (operand >= SCAN_COLUMNS && m->home[id] == SCAN_UNIFORM)
        buf_printf(m->out, "sum[%u][%d]", operand - SCAN_COLUMNS, m->l->body.ops[op->arg[0]].imm);
    else if (operand >= SCAN_COLUMNS)
        buf_printf(m->out, "((const %s *)made[%u])[i]", c_type(op->type), operand - SCAN_COLUMNS);
    else
        buf_printf(m->out, "*(const %s *)((const char *)column[%u] + i * %zuu)",
                   m->g->column[operand] == IR_ELEM_I8 ? "int8_t" : c_type(op->type), operand,
                   m->columns[operand].stride);
}

static void emit_value(const struct emit *m, uint32_t id)
{
    const struct ir_op *op = &m->l->body.ops[id];
    buf_printf(m->out, "const %s v%u = ", c_type(op->type), id);
    if (op->code == IR_CONST) {
        emit_const(op->type, op->imm, m->out);
    } else if (op->code == IR_INDEX) {
        buf_puts(m->out, "(int32_t)i");
    } else if (op->code == IR_LOAD) {
        emit_load(m, id);
    } else {
        char a[3][16] = {"0", "0", "0"};
        for (uint32_t k = 0; k < 3 && op->arg[k] != IR_NONE; k++)
            snprintf(a[k], sizeof(a[k]), "v%u", op->arg[k]);
        char *text = emit_scalar(op->code, m->l->body.ops[op->arg[0]].type, a[0], a[1], a[2]);
        buf_puts(m->out, text);
        free(text);
    }
    buf_puts(m->out, ";\n");
}

static void emit_values(const struct emit *m, enum scan_home from, enum scan_home to)
{
    for (uint32_t i = 0; i < m->l->body.count; i++) {
        if (m->home[i] >= from && m->home[i] <= to)
            emit_value(m, i);
    }
}

static void emit_keyed(const struct emit *m, const struct scan_elem *e, const char *lane)
{
    buf_printf(m->out, "{ const int32_t slot = ((uint32_t)v%u < %uu)", e->key, e->keys);
    if (e->guard != IR_NONE)
        buf_printf(m->out, " & v%u", e->guard);
    buf_printf(m->out, " ? v%u : %u;\nfloat *a = a%u[%s][slot];\n", e->key, e->keys, e->id, lane);
    for (uint32_t k = 0; k < e->values; k++)
        buf_printf(m->out, "a[%u] = a[%u] + v%u;\n", k, k, e->value[k]);
    buf_puts(m->out, "}\n");
}

/* What becomes of one row, lane `lane` of the chunk. */
static void emit_elem(const struct emit *m, const struct scan_elem *e, const char *lane)
{
    if (e->collect) {
        buf_printf(m->out, "((%s *)made[%u])[i] = v%u;\n", c_type(m->l->body.ops[e->value[0]].type),
                   e->id, e->value[0]);
        return;
    }
    if (e->key != IR_NONE) {
        emit_keyed(m, e, lane);
        return;
    }
    for (uint32_t k = 0; k < e->values; k++) {
        buf_printf(m->out, "a%u[%u][%s] = a%u[%u][%s] + ", e->id, k, lane, e->id, k, lane);
        if (e->guard != IR_NONE)
            buf_printf(m->out, "(v%u ? v%u : 0.0f);\n", e->guard, e->value[k]);
        else
            buf_printf(m->out, "v%u;\n", e->value[k]);
    }
}

static void emit_table_row(const struct emit *m, const char *lane)
{
    emit_values(m, SCAN_REGISTER, SCAN_IN_PLACE);
    for (uint32_t k = 0; k < m->l->count; k++)
        emit_elem(m, &m->l->elems[k], lane);
}

static void emit_sums(const struct emit *m, bool begin)
{
    for (uint32_t k = 0; k < m->l->count; k++) {
        const struct scan_elem *e = &m->l->elems[k];
        if (e->collect)
            continue;
        bool keyed = e->key != IR_NONE;
        if (begin && keyed)
            buf_printf(m->out, "float a%u[16][%u][%d] = {{{0}}};\n", e->id, e->keys + 1,
                       SCAN_VALUES);
        else if (begin)
            buf_printf(m->out, "float a%u[%u][16] = {{0}};\n", e->id, e->values);
        else if (keyed)
            buf_printf(
                m->out,
                "for (int k = 0; k < %u; k++)\nfor (int v = 0; v < %u; v++) {\nfloat s[16];\n"
                "for (int j = 0; j < 16; j++)\ns[j] = a%u[j][k][v];\n"
                "chunk[%u][k * %u + v] = (double)sy_tree_sum(s);\n}\n",
                e->keys, e->values, e->id, e->id, e->values);
        else
            buf_printf(
                m->out,
                "for (int v = 0; v < %u; v++)\nchunk[%u][v] = (double)sy_tree_sum(a%u[v]);\n",
                e->values, e->id, e->id);
    }
}

static bool is_keyed(const struct scan_loop *l)
{
    for (uint32_t k = 0; k < l->count; k++) {
        if (l->elems[k].key != IR_NONE)
            return true;
    }
    return false;
}

static void emit_loop(struct emit *m, uint32_t i)
{
    const struct scan_loop *l = m->l = &m->g->loop[i];
    uint32_t n = BASE_MAX(l->body.count, 1u);
    enum scan_home *home = mem_array(n, sizeof(*home));
    uint32_t *reg = mem_array(n, sizeof(*reg));
    for (uint32_t k = 0; k < l->body.count; k++)
        home[k] = scan_home_of(m->g, &l->body, k, home);
    scan_registers(l, home, reg); /* for what it marks as dead */
    m->home = home;
    buf_printf(
        m->out,
        "__attribute__((visibility(\"default\"))) void sy_scan_%u(const void *const *column, void "
        "*const *made, const float *const *sum, uint64_t from, uint64_t to, double *const "
        "*chunk)\n{\n",
        i);
    emit_values(m, SCAN_UNIFORM, SCAN_UNIFORM);
    emit_sums(m, true);
    buf_puts(m->out, "uint64_t base = from;\nfor (; base + 16 <= to; base += 16) {\n");
    /* Rows of a group go to different lanes; where keys decide the address, vectors do not help. */
    buf_puts(m->out, is_keyed(l) ? "" : "SY_IVDEP\n");
    buf_puts(m->out, "for (int j = 0; j < 16; j++) {\nconst uint64_t i = base + (uint64_t)j;\n");
    emit_table_row(m, "j");
    buf_puts(m->out, "}\n}\nfor (uint64_t i = base; i < to; i++) {\n");
    emit_table_row(m, "i - base");
    buf_puts(m->out, "}\n");
    emit_sums(m, false);
    buf_puts(m->out, "}\n");
    free(home);
    free(reg);
}

void scan_emit(const struct scan_graph *g, const struct scan_source *columns, struct buf *out)
{
    struct emit m = {.g = g, .columns = columns, .out = out};
    buf_printf(out, "/* emitter %d */\n", EMIT_VERSION);
    emit_prelude(out);
    for (uint32_t i = 0; i < g->loops; i++)
        emit_loop(&m, i);
}
