/* The data of the table workloads and their graphs. Values follow TPC-H's ranges: about 2 % of the
 * rows pass Q6, 98 % pass Q1. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "rdu/bench/work.h"

/* ---- data ------------------------------------------------------------------------------------ */

static void *map(struct bench_table *t, size_t bytes)
{
    t->bytes = BASE_MAX(bytes, (size_t)4096);
    t->memory = mmap(NULL, t->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (t->memory == MAP_FAILED)
        abort();
    madvise(t->memory, t->bytes, MADV_HUGEPAGE);
    return t->memory;
}

void bench_table_done(struct bench_table *t)
{
    if (t->memory)
        munmap(t->memory, t->bytes);
    memset(t, 0, sizeof(*t));
}

static struct bench_lineitem draw(struct rng *rng)
{
    struct bench_lineitem l = {0};
    uint64_t bits = rng_u64(rng);
    l.quantity = (float)(1 + bits % 50);
    l.price = l.quantity * (float)(900 + (bits >> 8) % 1000);
    l.discount = (float)((bits >> 32) % 11) * 0.01f;
    l.tax = (float)((bits >> 40) % 9) * 0.01f;
    l.ship_day = (int32_t)rng_below(rng, LINE_DAYS);
    l.commit_day = l.ship_day + 30;
    l.receipt_day = l.ship_day + 7;
    /* Returned or not is open until the middle of 1995, as is the order's status. */
    bool late = l.receipt_day > 1263;
    l.return_flag = late ? 1 : (bits >> 48 & 1 ? 2 : 0);
    l.status = (int8_t)late;
    return l;
}

struct layout {
    size_t offset, bytes; /* in the record; of the element */
};
static const struct layout line_layout[LINE_COLUMNS] = {
    {offsetof(struct bench_lineitem, quantity), 4},
    {offsetof(struct bench_lineitem, price), 4},
    {offsetof(struct bench_lineitem, discount), 4},
    {offsetof(struct bench_lineitem, tax), 4},
    {offsetof(struct bench_lineitem, ship_day), 4},
    {offsetof(struct bench_lineitem, return_flag), 1},
    {offsetof(struct bench_lineitem, status), 1},
};

static void lay_out(struct bench_table *t, size_t n, bool columns, size_t record,
                    const struct layout *layout, uint32_t count)
{
    size_t bytes = n * record, at = 0;
    for (uint32_t i = 0; columns && i < count; i++)
        at += (n * layout[i].bytes + 63) & ~(size_t)63;
    char *base = map(t, columns ? at : bytes);
    at = 0;
    for (uint32_t i = 0; i < count; i++) {
        t->source[i].data = columns ? base + at : base + layout[i].offset;
        t->source[i].stride = columns ? layout[i].bytes : record;
        at += (n * layout[i].bytes + 63) & ~(size_t)63;
    }
    t->n = n;
}

static void put(struct bench_table *t, size_t i, const void *record, const struct layout *layout,
                uint32_t count)
{
    for (uint32_t c = 0; c < count; c++)
        memcpy((char *)(uintptr_t)t->source[c].data + i * t->source[c].stride,
               (const char *)record + layout[c].offset, layout[c].bytes);
}

void bench_lineitem_fill(struct bench_table *t, size_t n, bool columns, uint64_t seed)
{
    struct rng rng;
    rng_init(&rng, seed);
    lay_out(t, n, columns, sizeof(struct bench_lineitem), line_layout, LINE_COLUMNS);
    for (size_t i = 0; i < n; i++) {
        struct bench_lineitem l = draw(&rng);
        put(t, i, &l, line_layout, LINE_COLUMNS);
    }
}

void bench_chain_fill(struct bench_table *t, size_t n, bool columns, uint64_t seed)
{
    static const struct layout layout[2] = {{0, 4}, {4, 4}};
    struct rng rng;
    rng_init(&rng, seed);
    lay_out(t, n, columns, 4 * sizeof(float), layout, 2);
    for (size_t i = 0; i < n; i++) {
        uint64_t bits = rng_u64(&rng);
        float r[2] = {(float)(bits & 0xffff) / 8192.0f - 4.0f,
                      (float)(bits >> 16 & 0xffff) / 16384.0f - 2.0f};
        put(t, i, r, layout, 2);
    }
}

/* ---- graphs ---------------------------------------------------------------------------------- */

static void add_columns(struct scan_graph *g)
{
    for (uint32_t i = 0; i < LINE_COLUMNS; i++)
        scan_column(g, i == LINE_FLAG || i == LINE_STATUS
                           ? IR_ELEM_I8
                           : (i == LINE_SHIP_DAY ? IR_ELEM_I32 : IR_ELEM_F32));
}

/* where, select, sum. */
struct scan_graph *bench_q6_graph(uint32_t *ret_elem)
{
    struct scan_graph *g = scan_graph_open("q6");
    add_columns(g);
    struct ir_body *b = scan_begin(g);
    uint32_t day = scan_load(g, LINE_SHIP_DAY), discount = scan_load(g, LINE_DISCOUNT);
    uint32_t keep = ir_op2(b, IR_LE, ir_i32(b, Q6_DAY_FROM), day);
    keep = ir_op2(b, IR_AND, keep, ir_op2(b, IR_LT, day, ir_i32(b, Q6_DAY_TO)));
    keep = ir_op2(b, IR_AND, keep, ir_op2(b, IR_LT, ir_f32(b, Q6_DISCOUNT_FROM), discount));
    keep = ir_op2(b, IR_AND, keep, ir_op2(b, IR_LT, discount, ir_f32(b, Q6_DISCOUNT_TO)));
    keep = ir_op2(b, IR_AND, keep,
                  ir_op2(b, IR_LT, scan_load(g, LINE_QUANTITY), ir_f32(b, Q6_QUANTITY)));
    uint32_t where = scan_collect(g, keep);
    b = scan_begin(g);
    uint32_t revenue =
        scan_collect(g, ir_op2(b, IR_MUL, scan_load(g, LINE_PRICE), scan_load(g, LINE_DISCOUNT)));
    scan_begin(g);
    *ret_elem = scan_reduce(g, &(struct scan_elem){.guard = scan_load(g, SCAN_COLUMNS + where),
                                                   .key = IR_NONE,
                                                   .keys = 1,
                                                   .value = {scan_load(g, SCAN_COLUMNS + revenue)},
                                                   .values = 1});
    return g;
}

/* where, group key, two computed columns, one grouped sum. */
struct scan_graph *bench_q1_graph(uint32_t *ret_elem)
{
    struct scan_graph *g = scan_graph_open("q1");
    add_columns(g);
    struct ir_body *b = scan_begin(g);
    uint32_t where =
        scan_collect(g, ir_op2(b, IR_LE, scan_load(g, LINE_SHIP_DAY), ir_i32(b, Q1_DAY)));
    b = scan_begin(g);
    uint32_t flag = ir_op2(b, IR_MUL, scan_load(g, LINE_FLAG), ir_i32(b, 2));
    uint32_t key = scan_collect(g, ir_op2(b, IR_ADD, flag, scan_load(g, LINE_STATUS)));
    b = scan_begin(g);
    uint32_t rest = ir_op2(b, IR_SUB, ir_f32(b, 1.0f), scan_load(g, LINE_DISCOUNT));
    uint32_t disc_price = scan_collect(g, ir_op2(b, IR_MUL, scan_load(g, LINE_PRICE), rest));
    b = scan_begin(g);
    uint32_t taxed = ir_op2(b, IR_ADD, ir_f32(b, 1.0f), scan_load(g, LINE_TAX));
    uint32_t charge =
        scan_collect(g, ir_op2(b, IR_MUL, scan_load(g, SCAN_COLUMNS + disc_price), taxed));
    b = scan_begin(g);
    struct scan_elem sums = {.guard = scan_load(g, SCAN_COLUMNS + where),
                             .key = scan_load(g, SCAN_COLUMNS + key),
                             .keys = Q1_KEYS,
                             .values = Q1_VALUES};
    sums.value[Q1_QUANTITY] = scan_load(g, LINE_QUANTITY);
    sums.value[Q1_PRICE] = scan_load(g, LINE_PRICE);
    sums.value[Q1_DISC_PRICE] = scan_load(g, SCAN_COLUMNS + disc_price);
    sums.value[Q1_CHARGE] = scan_load(g, SCAN_COLUMNS + charge);
    sums.value[Q1_DISCOUNT] = scan_load(g, LINE_DISCOUNT);
    sums.value[Q1_COUNT] = ir_f32(b, 1.0f);
    *ret_elem = scan_reduce(g, &sums);
    return g;
}

/* Twelve operators, a loop each. */
struct scan_graph *bench_chain_graph(uint32_t *ret_elem)
{
    static const struct {
        enum ir_code code;
        int with; /* column, -1: constant, -2: itself, -3: nothing */
        float constant;
    } op[12] = {{IR_MUL, -1, CHAIN_A}, {IR_ADD, 1, 0}, {IR_MAX, -1, 0.0f},    {IR_MUL, -2, 0},
                {IR_ADD, -1, CHAIN_B}, {IR_MUL, 1, 0}, {IR_SUB, 0, 0},        {IR_ABS, -3, 0},
                {IR_MIN, -1, CHAIN_C}, {IR_MUL, 0, 0}, {IR_MUL, -1, CHAIN_D}, {IR_SUB, 1, 0}};
    struct scan_graph *g = scan_graph_open("elementwise");
    scan_column(g, IR_ELEM_F32);
    scan_column(g, IR_ELEM_F32);
    uint32_t last = 0;
    for (uint32_t i = 0; i < BASE_COUNT(op); i++) {
        struct ir_body *b = scan_begin(g);
        uint32_t v = scan_load(g, i == 0 ? 0 : SCAN_COLUMNS + last);
        if (op[i].with == -3)
            v = ir_op1(b, op[i].code, v);
        else if (op[i].with == -2)
            v = ir_op2(b, op[i].code, v, v);
        else
            v = ir_op2(b, op[i].code, v,
                       op[i].with == -1 ? ir_f32(b, op[i].constant)
                                        : scan_load(g, (uint32_t)op[i].with));
        last = scan_collect(g, v);
    }
    g->wanted[last] = true;
    *ret_elem = last;
    return g;
}
