/* Which operations of a loop are needed and where their values live. A register holds one block of
 * lanes; an operation may write over an argument that dies with it. */
#include <stdlib.h>
#include <string.h>

#include "rdu/scan/scan.h"

/* Last operation that reads each value: count for what an elem reads, IR_NONE for what nobody
 * does. Users have higher ids, so one walk downwards settles what is needed. */
static uint32_t *last_uses(const struct scan_loop *l)
{
    const struct ir_body *b = &l->body;
    uint32_t *last = mem_array(BASE_MAX(b->count, 1u), sizeof(*last));
    memset(last, 0xff, b->count * sizeof(*last));
    for (uint32_t i = 0; i < l->count; i++) {
        const struct scan_elem *e = &l->elems[i];
        for (uint32_t k = 0; k < e->values; k++)
            last[e->value[k]] = b->count;
        if (e->guard != IR_NONE)
            last[e->guard] = b->count;
        if (e->key != IR_NONE)
            last[e->key] = b->count;
    }
    for (uint32_t i = b->count; i-- > 0;) {
        uint32_t arg[5], args = ir_op_args(&b->ops[i], arg);
        if (last[i] == IR_NONE || b->ops[i].code == IR_LOAD)
            continue; /* a load knows its row, or which sum it reads, by itself */
        for (uint32_t k = 0; k < args; k++) {
            if (last[arg[k]] == IR_NONE)
                last[arg[k]] = i;
        }
    }
    return last;
}

enum scan_home scan_home_of(const struct scan_graph *g, const struct ir_body *b, uint32_t id,
                            const enum scan_home *homes)
{
    const struct ir_op *op = &b->ops[id];
    if (op->code == IR_CONST)
        return SCAN_UNIFORM;
    if (op->code == IR_INDEX)
        return SCAN_REGISTER;
    if (op->code == IR_LOAD) {
        if (homes[op->arg[0]] == SCAN_UNIFORM)
            return SCAN_UNIFORM;
        bool narrow = op->imm < SCAN_COLUMNS && g->column[op->imm] == IR_ELEM_I8;
        return narrow ? SCAN_REGISTER : SCAN_IN_PLACE;
    }
    uint32_t arg[5], args = ir_op_args(op, arg);
    for (uint32_t k = 0; k < args; k++) {
        if (homes[arg[k]] != SCAN_UNIFORM)
            return SCAN_REGISTER;
    }
    return SCAN_UNIFORM;
}

static bool is_again(const uint32_t *arg, uint32_t k)
{
    for (uint32_t j = 0; j < k; j++) {
        if (arg[j] == arg[k])
            return true;
    }
    return false;
}

uint32_t scan_registers(const struct scan_loop *l, enum scan_home *homes, uint32_t *reg)
{
    uint32_t n = l->body.count, free_count = 0, made = 0;
    uint32_t *last = last_uses(l), *pool = mem_array(BASE_MAX(n, 1u), sizeof(*pool));
    for (uint32_t i = 0; i < n; i++) {
        reg[i] = IR_NONE;
        if (last[i] == IR_NONE) {
            homes[i] = SCAN_DEAD;
            continue;
        }
        uint32_t arg[5], args = ir_op_args(&l->body.ops[i], arg);
        for (uint32_t k = 0; k < args; k++) {
            if (last[arg[k]] == i && reg[arg[k]] != IR_NONE && !is_again(arg, k))
                pool[free_count++] = reg[arg[k]];
        }
        if (homes[i] == SCAN_REGISTER)
            reg[i] = free_count > 0 ? pool[--free_count] : made++;
    }
    free(last);
    free(pool);
    return made;
}

struct scan_block scan_block_of(const struct scan_graph *g, const struct scan_loop *l)
{
    uint32_t n = BASE_MAX(l->body.count, 1u);
    uint32_t *reg = mem_array(n, sizeof(*reg));
    enum scan_home *homes = mem_array(n, sizeof(*homes));
    for (uint32_t i = 0; i < l->body.count; i++)
        homes[i] = scan_home_of(g, &l->body, i, homes);
    struct scan_block b = {SCAN_ROWS_MAX, scan_registers(l, homes, reg)};
    free(reg);
    free(homes);
    while (b.rows >= SCAN_ROWS_MIN && b.rows * sizeof(float) * b.registers > SCAN_L1_BYTES)
        b.rows /= 2;
    if (b.rows < SCAN_ROWS_MIN)
        b.rows = 0;
    return b;
}
