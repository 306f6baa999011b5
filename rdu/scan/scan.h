/* Loops over the rows of a table: Delite's MultiLoop with the elems collect, reduce and
 * hash_reduce. A loop is one walk over all rows, one body of the IR's scalar operations, and one or
 * more elems that say what becomes of its values; a guard is a value of the same body as what it
 * guards. Fusing makes one loop of several (fuse.c); running goes through blocks of rows (run.c).
 *
 * Sums have one order whatever the level, the layout of the table and the number of sockets
 * (rdu/README.md, rule 13): chunks of SCAN_CHUNK rows by rule 1, chunks added up in f64 in rising
 * order. That is what lets chunks be dealt out to sockets. Private to rdu/. */
#ifndef SWITCHYARD_RDU_SCAN_H
#define SWITCHYARD_RDU_SCAN_H

#include "rdu/ir/interp.h"

#define SCAN_CHUNK 4096
#define SCAN_COLUMNS 32
#define SCAN_ELEMS 64
#define SCAN_VALUES 8 /* of one elem */
#define SCAN_KEYS 64

struct scan_elem {
    uint32_t id;    /* number in the graph */
    bool collect;   /* value[0] of every row; else sums of the values, by key */
    uint32_t guard; /* bool of the body: rows without it add nothing; IR_NONE */
    uint32_t key;   /* i32 of the body: rows outside [0, keys) add nothing; IR_NONE: one key */
    uint32_t keys;
    uint32_t value[SCAN_VALUES], values; /* f32; a collect may be of any type */
};
/* LOADs read at INDEX 0: operand k < SCAN_COLUMNS is a column, SCAN_COLUMNS + id a collected elem.
 * At a constant index, SCAN_COLUMNS + id is one sum of a reducing elem, as f32. */
struct scan_loop {
    struct ir_body body;
    struct scan_elem *elems;
    uint32_t count;
};
struct scan_graph {
    char name[32];
    uint32_t column[SCAN_COLUMNS], columns; /* enum ir_elem */
    struct scan_loop loop[SCAN_ELEMS];
    uint32_t loops;
    uint32_t elems;
    bool wanted[SCAN_ELEMS]; /* collected elems the caller reads; sums always are */
    bool failed;             /* too much of something */
};
struct scan_graph *scan_graph_open(const char *name);
void scan_graph_close(struct scan_graph **g);
uint32_t scan_column(struct scan_graph *g, enum ir_elem elem);
/* The loop that elems are added to next. The body is the caller's to fill. */
struct ir_body *scan_begin(struct scan_graph *g);
uint32_t scan_load(struct scan_graph *g, uint32_t operand);             /* at the row */
uint32_t scan_load_sum(struct scan_graph *g, uint32_t elem, int32_t i); /* key * values + value */
/* Both return the elem's id. */
uint32_t scan_collect(struct scan_graph *g, uint32_t value);
uint32_t scan_reduce(struct scan_graph *g, const struct scan_elem *elem);
enum err_code scan_verify(const struct scan_graph *g, struct err *e) BASE_NODISCARD;
enum ir_type scan_operand_type(const struct scan_graph *g, uint32_t operand);

/* One loop of as many as the rules and the gate allow; `report` (may be NULL) gets a line per
 * decision. */
struct scan_graph *scan_fuse(const struct scan_graph *g, struct buf *report);
/* Rows of a block and registers a loop needs so that they stay in the first-level cache; 0 rows: it
 * does not fit even in blocks of SCAN_ROWS_MIN, below which the interpreter's own work outweighs
 * the traffic that fusing saves. */
#define SCAN_ROWS_MIN 128
#define SCAN_ROWS_MAX 512
#define SCAN_L1_BYTES (24u << 10) /* of 32 KiB: columns pass through as well */
struct scan_block {
    uint32_t rows, registers;
};
struct scan_block scan_block_of(const struct scan_graph *g, const struct scan_loop *l);
/* Where a value lives: once for all rows, in a register of lanes, in a column as it lies (4 bytes
 * an element, one after the other), nowhere. Filled in rising order of ids. */
enum scan_home { SCAN_UNIFORM, SCAN_REGISTER, SCAN_IN_PLACE, SCAN_DEAD };
enum scan_home scan_home_of(const struct scan_graph *g, const struct ir_body *b, uint32_t id,
                            const enum scan_home *homes);
/* Registers, given back behind the last use of their value: reg [ops], IR_NONE where there is none.
 * Marks what nobody reads as dead. Returns how many registers there are. */
uint32_t scan_registers(const struct scan_loop *l, enum scan_home *homes, uint32_t *reg);

struct scan_source {
    const void *data;
    size_t stride; /* bytes between rows: of the element for a column, of the record for rows */
};
/* The graph as C, for tables that lie as these columns do: a function sy_scan_<loop> for each loop,
 * which runs one chunk. column by index, made and sum and chunk by elem id. */
void scan_emit(const struct scan_graph *g, const struct scan_source *columns, struct buf *out);
typedef void scan_native_fn(const void *const *column, void *const *made, const float *const *sum,
                            uint64_t from, uint64_t to, double *const *chunk);

/* ---- running --------------------------------------------------------------------------------- */

/* A graph bound to a table. Borrows graph and data. Not for two threads at once. */
struct scan_exec;
struct scan_exec *scan_exec_open(const struct scan_graph *g, const struct scan_source *columns,
                                 size_t rows);
void scan_exec_close(struct scan_exec **x);
/* One launch per loop, its chunks split over `sockets` in shares of whole chunks. */
void scan_run(struct scan_exec *x, uint32_t sockets);
/* The same by compiled functions, one per loop. */
void scan_run_native(struct scan_exec *x, uint32_t sockets, scan_native_fn *const *loops);
/* [keys, values] of a reducing elem. */
const double *scan_sums(const struct scan_exec *x, uint32_t elem);
/* [rows] of a wanted collected one. */
const void *scan_collected(const struct scan_exec *x, uint32_t elem);
size_t scan_bytes(const struct scan_exec *x); /* of whole columns between loops */

/* What reducing takes beyond the interpreter's arithmetic, in two builds as that is. */
struct scan_ops {
    /* Rule 1 over the rows whose mask is set. */
    void (*sum16_if)(float *acc, const int32_t *mask, const float *v, uint32_t n);
    /* key, or `keys` for a row that is refused; mask may be NULL. */
    void (*slots)(int32_t *slot, const int32_t *key, const int32_t *mask, int32_t keys, uint32_t n);
    /* acc [16, keys + 1, SCAN_VALUES] += the values of row i at [i % 16, slot[i]]; those beyond
     * `values` are not used. */
    void (*hash16)(float *acc, uint32_t keys, const int32_t *slot, const float *const *value,
                   uint32_t values, uint32_t n);
};
void scan_ops_base(struct scan_ops *ret);
void scan_ops_avx2(struct scan_ops *ret);
const struct scan_ops *scan_ops(void);
/* The 16 partial sums, `step` floats apart, to one: rule 1's tree. Leaves partial sums behind. */
float scan_tree16(float *acc, size_t step);

#endif
