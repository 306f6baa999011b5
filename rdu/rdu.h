/* rdu/: the emulated multi-socket RDU node. Programs are graphs of a few parallel patterns (Delite,
 * arXiv 1109.0778), compiled whole (Flare, arXiv 1703.08219) into launches that the sockets run
 * (SN40L, arXiv 2405.07518). The one order of floating-point operations that every execution level,
 * ISA, batch, thread and socket count keeps is written down in rdu/README.md. */
#ifndef SWITCHYARD_RDU_H
#define SWITCHYARD_RDU_H

#include "base/base.h"

/* ==== Element types and packed weights ======================================================== */

enum rdu_type {
    RDU_F32, RDU_F16, RDU_BF16, RDU_Q4_0, RDU_Q4_1, RDU_Q5_0, RDU_Q5_1, RDU_Q8_0, RDU_Q2_K, RDU_Q3_K,
    RDU_Q4_K, RDU_Q5_K, RDU_Q6_K, RDU_IQ1_S, RDU_IQ2_XXS, RDU_IQ2_XS, RDU_IQ2_S, RDU_IQ3_XXS,
    RDU_IQ3_S, RDU_IQ4_NL, RDU_IQ4_XS, RDU_TQ1_0, RDU_TQ2_0, RDU_TYPES,
};
struct rdu_type_info {
    const char *name;     /* "Q4_1" */
    int gguf_id;          /* ggml type number in GGUF files */
    uint32_t block_elems; /* elements per block along a row */
    uint32_t block_bytes;
    bool is_float;        /* F32, F16, BF16: multiplied with f32 activations in every numerics */
    bool is_fast;         /* has a leaf beyond the generic dequantising one */
};
const struct rdu_type_info *rdu_type_info(enum rdu_type type);
bool rdu_type_from_gguf(int gguf_id, enum rdu_type *ret);

/* Packed form: groups of RDU_GROUP rows, the last one padded with zero blocks; inside a group the
 * blocks follow each other along the row and the 8 rows are interleaved, so that one load feeds 8
 * rows. A run of whole groups is contiguous: that is what a socket's shard is. Bit-exact: unpack gives
 * back the original bytes. Layouts by type: rdu/kernels/pack.c. */
#define RDU_GROUP 8
/* Bytes of a packed matrix; 0 if cols is no multiple of the type's block, more than RDU_COLS_MAX (kernels
 * keep a row's activations on the stack), or on overflow. */
size_t rdu_pack_bytes(enum rdu_type type, size_t rows, size_t cols);
/* `src` rows as in GGUF (row-major blocks). Any thread. */
void rdu_pack_rows(enum rdu_type type, size_t rows, size_t cols, const void *src, void *dst);
void rdu_unpack_rows(enum rdu_type type, size_t rows, size_t cols, const void *src, void *dst);
/* One GGUF row to f32, and one f32 row to GGUF blocks (Q8_0, Q4_0, Q4_1, F16, BF16, F32 only). */
void rdu_dequant_row(enum rdu_type type, const void *src, float *dst, size_t cols);
enum err_code rdu_quantize_row(enum rdu_type type, const float *src, void *dst, size_t cols,
                               struct err *e) BASE_NODISCARD;
float rdu_f16_to_f32(uint16_t h);
uint16_t rdu_f32_to_f16(float f); /* nearest even */

/* ==== Programs as graphs ====================================================================== */

enum rdu_numerics { RDU_NUMERICS_INT8, RDU_NUMERICS_F32 };
enum rdu_exec { RDU_EXEC_INTERP, RDU_EXEC_UNFUSED, RDU_EXEC_FUSED, RDU_EXEC_NATIVE };

/* A program has three sections: EMBED makes the hidden state x, LAYER maps x to x and is looped over a
 * table of argument rows (never unrolled), HEAD makes logits of the chosen tokens. Stage 0 is EMBED,
 * stages 1..n_layers are LAYER, stage n_layers + 1 is HEAD. */
enum rdu_section { RDU_SECTION_EMBED, RDU_SECTION_LAYER, RDU_SECTION_HEAD, RDU_SECTIONS };

/* Symbolic sizes in shapes; constants are >= 0. */
#define RDU_DIM_TOKENS (-1) /* tokens of the step */
#define RDU_DIM_OUTS (-2)   /* tokens whose logits are wanted */
#define RDU_DIM_CTX (-3)    /* longest context of the step, in tokens */

/* Built by one thread; a wrong shape or operand sets a sticky error that rdu_program_open reports.
 * Values are node ids. `x` shapes are [n_tokens or n_outs, width] f32 row-major unless said. */
struct rdu_graph;
struct rdu_graph *rdu_graph_open(const char *name, enum rdu_numerics numerics);
void rdu_graph_close(struct rdu_graph **g);
/* Start a section; returns its carried-in x [rows, width] (width ignored for EMBED: returns the token
 * ids [n_tokens] i32). HEAD's x still has n_tokens rows. */
uint32_t rdu_graph_begin(struct rdu_graph *g, enum rdu_section section, uint32_t width);
/* End the current section with its result: x for EMBED and LAYER, logits for HEAD. */
void rdu_graph_end(struct rdu_graph *g, uint32_t result);

/* Weight slots by name ("attn_q.weight"); matrices are [rows, cols] y = W x, vectors [1, cols].
 * LAYER sections make per-layer slots, the others global ones. The element type comes with the
 * arguments at run time. Returns the slot index, within its scope. The same name gives the same slot. */
uint32_t rdu_slot(struct rdu_graph *g, const char *name, uint32_t rows, uint32_t cols);
/* A constant table [rows, cols] f32, copied (RoPE cosines: made once, outside every loop). */
uint32_t rdu_const(struct rdu_graph *g, const char *name, const float *data, uint32_t rows,
                   uint32_t cols);

uint32_t rdu_embed(struct rdu_graph *g, uint32_t tokens, uint32_t slot);
/* Row of a token's position instead of its id: learned positions. EMBED only. */
uint32_t rdu_embed_pos(struct rdu_graph *g, uint32_t slot);
/* `groups` equal parts of each row are normalised apart (1, or heads for q/k norm). */
uint32_t rdu_rms_norm(struct rdu_graph *g, uint32_t x, uint32_t slot, float eps, uint32_t groups);
/* Each row less its mean. */
uint32_t rdu_center(struct rdu_graph *g, uint32_t x);
/* center, rms_norm, add_bias: (x - mean) / sqrt(variance + eps) * weight + bias. */
uint32_t rdu_layer_norm(struct rdu_graph *g, uint32_t x, uint32_t weight_slot, uint32_t bias_slot,
                        float eps);
/* y = W x + adapters' deltas for that slot. int8 programs quantise x first (one node per x, shared). */
uint32_t rdu_matmul(struct rdu_graph *g, uint32_t x, uint32_t slot);
uint32_t rdu_add(struct rdu_graph *g, uint32_t a, uint32_t b);
uint32_t rdu_add_bias(struct rdu_graph *g, uint32_t x, uint32_t slot);
uint32_t rdu_scale(struct rdu_graph *g, uint32_t x, float factor);
uint32_t rdu_softcap(struct rdu_graph *g, uint32_t x, float cap);     /* cap * tanh(x / cap) */
uint32_t rdu_silu_mul(struct rdu_graph *g, uint32_t gate, uint32_t up); /* silu(gate) * up */
uint32_t rdu_gelu_mul(struct rdu_graph *g, uint32_t gate, uint32_t up); /* tanh-GELU */
uint32_t rdu_gelu(struct rdu_graph *g, uint32_t x);                     /* x * Phi(x), by erf */
enum rdu_rope { RDU_ROPE_PAIRS, RDU_ROPE_HALVES }; /* (2i, 2i+1) | (i, i + rot/2) */
/* cos and sin: constants [context, rot/2]; row = the token's position. */
uint32_t rdu_rope(struct rdu_graph *g, uint32_t x, uint32_t cos_table, uint32_t sin_table,
                  uint32_t heads, uint32_t head_dim, uint32_t rot, enum rdu_rope style);
/* Causal attention over paged KV after appending k and v at the tokens' positions. */
struct rdu_attention_options {
    uint32_t heads, kv_heads, head_dim;
    float scale;       /* of q.k */
    float softcap;     /* 0 = none */
    bool windowed;     /* the layer's `window` argument limits how far back a token sees */
    /* A token sees up to position rdu_args.ends[token], not only up to its own: an encoder, whose
     * sequences are whole in one step. */
    bool bidirectional;
};
uint32_t rdu_attention(struct rdu_graph *g, uint32_t q, uint32_t k, uint32_t v,
                       const struct rdu_attention_options *opt);
uint32_t rdu_take_outs(struct rdu_graph *g, uint32_t x); /* [n_tokens, w] -> [n_outs, w] */
/* Mean over the tokens of a wanted output's sequence from position 0 up to it, all of this step and
 * next to each other: [n_tokens, w] -> [n_outs, w]. HEAD only. */
uint32_t rdu_mean_pool(struct rdu_graph *g, uint32_t x);

/* Text of the graph: nodes, shapes, loop bodies. */
void rdu_graph_print(const struct rdu_graph *g, struct buf *out);

/* ==== Compiled programs ======================================================================= */

/* Immutable; shared by every expert of a shape. Owns the graph it was opened with. */
struct rdu_program;
struct rdu_program_options {
    enum rdu_exec exec;
    uint32_t sockets; /* row shards */
};
/* verify -> simplify -> fuse -> partition -> place. Takes the graph over, also on failure. */
enum err_code rdu_program_open(struct rdu_graph **g, const struct rdu_program_options *opt,
                               struct rdu_program **ret, struct err *e) BASE_NODISCARD;
void rdu_program_close(struct rdu_program **p);
enum rdu_exec rdu_program_exec(const struct rdu_program *p);
enum rdu_numerics rdu_program_numerics(const struct rdu_program *p);
uint32_t rdu_program_slots(const struct rdu_program *p, enum rdu_section scope);
struct rdu_slot_info {
    const char *name;
    uint32_t rows, cols;
};
/* scope LAYER = per-layer slots, any other = global slots. */
const struct rdu_slot_info *rdu_program_slot(const struct rdu_program *p, enum rdu_section scope,
                                             uint32_t slot_idx);
uint32_t rdu_program_width(const struct rdu_program *p); /* of x */
uint32_t rdu_program_vocab(const struct rdu_program *p);
/* KV bytes per token and layer are 2 * kv_heads * head_dim elements; 0 if it has no attention. */
void rdu_program_kv(const struct rdu_program *p, uint32_t *ret_kv_heads, uint32_t *ret_head_dim);
/* Scratch bytes of one socket set for a step of n_tokens / n_outs (liveness-planned, and naive). */
size_t rdu_program_scratch(const struct rdu_program *p, uint32_t n_tokens, uint32_t n_outs,
                           size_t *ret_naive);
/* What the passes did and which launches came out; for `switchyard explain`. */
void rdu_program_explain(const struct rdu_program *p, bool json, struct buf *out);

/* ==== Native code =============================================================================
 * Programs opened with RDU_EXEC_NATIVE run fused until a compiled unit is there: emitted as C,
 * compiled by the system's compiler in the background at low priority, kept in a cache of objects
 * by content, swapped in between two runs. Without a compiler, or when it fails, they go on as they
 * are: the same bits. */
struct rdu_native;
struct rdu_native_options {
    const char
        *compiler;   /* name or path; "" or one that is not there: only what is cached is loaded */
    const char *dir; /* of the cache; made, mode 0700 */
    uint64_t max_bytes;  /* of the cache; 0 = 64 MiB */
    uint32_t timeout_ms; /* of one compiler run; 0 = 60 s */
    const char *cpu;     /* as rdu_kernels_init */
};
enum err_code rdu_native_open(const struct rdu_native_options *opt, struct rdu_native **ret,
                              struct err *e) BASE_NODISCARD;
/* Ends a compiler that runs. Programs and expressions that were submitted must not run any more. */
void rdu_native_close(struct rdu_native **n);
/* Put into the queue; must live until they are loaded or the service closed. Any thread. */
enum err_code rdu_native_submit(struct rdu_native *n, struct rdu_program *p,
                                struct err *e) BASE_NODISCARD;
struct rdu_expr;
enum err_code rdu_native_submit_expr(struct rdu_native *n, struct rdu_expr *x,
                                     struct err *e) BASE_NODISCARD;
void rdu_native_wait(struct rdu_native *n); /* until the queue is empty */
bool rdu_program_is_native(const struct rdu_program *p);
bool rdu_expr_is_native(const struct rdu_expr *x);
struct rdu_native_stats {
    uint64_t compiled, cache_hits;
    uint64_t rejected; /* cached objects that were not ours or not whole: removed, compiled again */
    uint64_t not_stored; /* objects that the cache could not take: loaded all the same */
    uint64_t failed;     /* units that stay as they are */
    uint64_t compile_ns; /* of compiler runs */
    uint32_t waiting;
    char last_error[400]; /* "" = none so far */
};
void rdu_native_stats(struct rdu_native *n, struct rdu_native_stats *ret);
const char *rdu_native_compiler(const struct rdu_native *n); /* its path, NULL = there is none */

/* ==== The argument table of one run =========================================================== */

struct rdu_weight {
    const void *data;        /* packed; NULL = absent (or chunked) */
    const void *const *chunk; /* instead of data: chunk i holds rows [i * chunk_rows, ...) packed */
    uint32_t chunk_rows;     /* multiple of RDU_GROUP */
    uint32_t rows, cols;
    enum rdu_type type;
};
/* One adapter's low-rank delta for one slot: y += scale * B (A x), A [rank, cols], B [rows, rank],
 * both packed. Absent: a == NULL. */
struct rdu_delta {
    const void *a, *b;
    enum rdu_type a_type, b_type;
    uint32_t rank;
    float scale;
};
/* Consecutive tokens that share adapters, applied in order. */
struct rdu_token_group {
    uint32_t token_from, token_count;
    const struct rdu_delta *const *deltas; /* [adapters_count], each [n_layers, layer slots] */
    uint32_t adapters_count;               /* 0 = the plain base */
};

/* KV pages: a page holds page_tokens positions of every layer. Inside: [layer][kv_head][block], a
 * block covers RDU_KV_BLOCK positions: K as [head_dim][RDU_KV_BLOCK], then V as
 * [RDU_KV_BLOCK][head_dim], elements of kv_type. */
#define RDU_KV_BLOCK 32
enum rdu_kv_type { RDU_KV_F16, RDU_KV_F32, RDU_KV_Q8_0, RDU_KV_TYPES };
/* Of one block of one kv head: keys and values, then for Q8_0 (int8 elements) their scales as f16, one per
 * position and run of 32 dimensions: K's as [run][RDU_KV_BLOCK], V's as [RDU_KV_BLOCK][run]. */
size_t rdu_kv_block_bytes(enum rdu_kv_type type, uint32_t head_dim);
size_t rdu_kv_page_bytes(enum rdu_kv_type type, uint32_t layers, uint32_t kv_heads, uint32_t head_dim,
                         uint32_t page_tokens);

struct rdu_args {
    uint32_t n_tokens, n_outs, n_layers;
    const int32_t *tokens;      /* [n_tokens] */
    const uint32_t *pos;        /* [n_tokens] position in its sequence */
    const uint32_t *ends;       /* [n_tokens] last position it sees; bidirectional programs only */
    const uint32_t *seq;        /* [n_tokens] index into kv_pages */
    void *const *const *kv_pages; /* [seqs][pages] */
    uint32_t kv_page_tokens;
    enum rdu_kv_type kv_type;
    const uint32_t *outs;       /* [n_outs] token indices, ascending */
    const struct rdu_weight *globals;  /* [global slots] */
    const struct rdu_weight *layers;   /* [n_layers, layer slots] */
    const uint32_t *window;     /* [n_layers] 0 = unlimited; NULL = all unlimited */
    const struct rdu_token_group *groups; /* covering all tokens in order */
    uint32_t groups_count;
    float *x;                   /* [n_tokens, width rounded up to 16] hidden state between stages */
    float *logits;              /* [n_outs, vocab]; vocab padded up to RDU_GROUP as row stride */
    size_t logits_stride;       /* floats per row, >= vocab rounded up to RDU_GROUP */
};

/* ==== The node ================================================================================ */

struct rdu_node;
struct rdu_node_options {
    uint32_t sockets;           /* 1..16 */
    uint32_t threads;           /* host threads that play them, caller included; 1..sockets */
    bool pin_threads;
    const char *cpu;            /* NULL = SWITCHYARD_CPU or the best: "scalar", "avx2", "avx512" */
    uint32_t max_tokens;        /* largest step: scratch is sized once */
};
enum err_code rdu_node_open(const struct rdu_node_options *opt, struct rdu_node **ret, struct err *e)
    BASE_NODISCARD;
void rdu_node_close(struct rdu_node **n);
const char *rdu_node_isa(const struct rdu_node *n); /* "avx512-vnni", "avx2", "scalar" */
uint32_t rdu_node_sockets(const struct rdu_node *n);
uint32_t rdu_node_threads(const struct rdu_node *n);
/* Grow scratch so that `p` can run with n_tokens/n_outs; outside the token loop. */
enum err_code rdu_node_prepare(struct rdu_node *n, const struct rdu_program *p, uint32_t n_tokens,
                               uint32_t n_outs, struct err *e) BASE_NODISCARD;
/* Run stages [stage_from, stage_to). One caller at a time (it is worker 0). No allocation. The
 * weights and pages of those stages must be resident; the node knows nothing of loading. */
void rdu_node_run(struct rdu_node *n, const struct rdu_program *p, const struct rdu_args *args,
                  uint32_t stage_from, uint32_t stage_to);
struct rdu_node_stats {
    uint64_t runs, launches, host_ns, tokens;
    uint64_t base_reads;        /* passes over all layers of a base, whatever the batch */
    /* What the matmuls and attentions of those runs asked for, whatever the leaves did about it: bytes of
     * weights (once per launch; adapters not counted) and of visible K and V (once per step and sequence),
     * and operations (a multiply and an add are two) that int8 and f32 leaves took. */
    uint64_t weight_bytes, kv_bytes;
    double int8_ops, f32_ops;
};
void rdu_node_stats(const struct rdu_node *n, struct rdu_node_stats *ret);
/* Measured read bandwidth of this machine with the node's threads, bytes/s (about 0.3 s). */
double rdu_node_measure_read(struct rdu_node *n, size_t bytes);
/* Measured multiply-add peaks of the node's instruction set with its threads, operations/s (0.1 s each). */
void rdu_node_measure_peaks(struct rdu_node *n, double *ret_int8, double *ret_f32);

/* ==== Expressions =============================================================================
 * What users write for the logits chain, the routing policy and admission priority: small, pure and
 * typed, over named fields. Text never reaches a compiler: it is parsed to the IR's operations.
 *
 *   let m = max(logits);                      reductions of one argument: max min sum mean any all
 * count let p = exp(logits - m);                  max(a, b), min(a, b), clamp(x, lo, hi), abs sqrt
 * exp log tanh where(p < 0.05 or banned, -inf, logits)   floor rint, f32() i32(), if c then a else
 * b, and or not,
 *                                             + - * / %, < <= > >= == !=, true false inf, # comment
 *
 * A column has one value per element (expert, request, vocabulary entry), a scalar one for all. i32
 * turns into f32 where they meet; `/` is always f32; a bool is no number. Sums follow rule 1, NaN
 * never wins a max, every level of execution gives the same bits. */
enum rdu_expr_type { RDU_EXPR_F32, RDU_EXPR_I32, RDU_EXPR_BOOL };
struct rdu_expr_field {
    const char *name;
    enum rdu_expr_type type; /* BOOL is read as i32 0 or 1 */
    bool column;             /* one value per element, else one value */
};
struct rdu_expr_spec {
    const struct rdu_expr_field *fields; /* borrowed while the expression lives */
    uint32_t fields_count;               /* at most RDU_EXPR_FIELDS_MAX */
    enum rdu_expr_type result; /* F32 or BOOL; a scalar result is given to every element */
};
#define RDU_EXPR_TEXT_MAX 8192
#define RDU_EXPR_FIELDS_MAX 64
/* Immutable; any thread. Errors say "line L, column C: ..." and what would be right. */
struct rdu_expr;
enum err_code rdu_expr_open(const char *text, size_t len, const struct rdu_expr_spec *spec,
                            struct rdu_expr **ret, struct err *e) BASE_NODISCARD;
void rdu_expr_close(struct rdu_expr **x);
bool rdu_expr_uses(const struct rdu_expr *x, uint32_t field_idx);
/* Operations, passes over the elements, what is kept between passes: for people. */
void rdu_expr_print(const struct rdu_expr *x, struct buf *out);
/* Memory of one caller for expressions over at most n elements; grows at open only. */
struct rdu_expr_scratch;
struct rdu_expr_scratch *rdu_expr_scratch_open(const struct rdu_expr *x, size_t n);
void rdu_expr_scratch_close(struct rdu_expr_scratch **s);
/* inputs[i] belongs to fields[i]: [n] or [1] f32 or i32; those the expression does not use may be
 * NULL. ret [n] f32 (BOOL: int32_t 0 or 1); it may be one of the inputs. Allocates nothing. */
void rdu_expr_run(const struct rdu_expr *x, const void *const *inputs, size_t n, void *ret,
                  struct rdu_expr_scratch *s);
/* The same, one operation after the other over whole columns: what fusing is measured against.
 * Allocates. */
void rdu_expr_run_unfused(const struct rdu_expr *x, const void *const *inputs, size_t n, void *ret);

/* ==== What fusing is worth =====================================================================
 * The workloads of `switchyard bench fusion`: one graph each, run operator by operator and fused,
 * over a table of rows or of columns, and the same by hand in C. Nothing is measured here: the
 * caller times rdu_ablation_run. */
enum rdu_ablation_work {
    RDU_ABLATION_ELEMENTWISE,   /* twelve operators over two columns */
    RDU_ABLATION_DECODER_LAYER, /* one layer of a transformer; weights in rows, or interleaved */
    RDU_ABLATION_Q1,            /* TPC-H: grouped sums over nearly all rows */
    RDU_ABLATION_Q6,            /* TPC-H: one sum over 2 % of the rows */
    RDU_ABLATION_SAMPLER,       /* a chain over logits as a user expression; columns only */
    RDU_ABLATION_WORKS,
};
const char *rdu_ablation_name(enum rdu_ablation_work work);
enum rdu_ablation_way {
    RDU_ABLATION_UNFUSED, /* the blocked interpreter (layer: leaves), one launch per operator */
    RDU_ABLATION_FUSED,
    RDU_ABLATION_NATIVE,  /* the fused graph as emitted C; only where there is a compiler */
    RDU_ABLATION_HAND,    /* C written for vectors */
    RDU_ABLATION_PLAIN,   /* C as one writes it first */
    RDU_ABLATION_WAYS,
};
struct rdu_ablation_spec {
    enum rdu_ablation_work work;
    bool columns;
    uint64_t n;      /* rows, vocabulary, or the layer's width (a multiple of 64) */
    uint32_t tokens; /* of the layer's step */
    uint64_t seed;
};
struct rdu_ablation;
enum err_code rdu_ablation_open(const struct rdu_ablation_spec *spec, struct rdu_ablation **ret,
                                struct err *e) BASE_NODISCARD;
void rdu_ablation_close(struct rdu_ablation **a);
bool rdu_ablation_has(const struct rdu_ablation *a, enum rdu_ablation_way way);
void rdu_ablation_run(struct rdu_ablation *a, enum rdu_ablation_way way);
/* Do all ways give the same bits (PLAIN: the same within 1e-5)? Runs each once. */
enum err_code rdu_ablation_check(struct rdu_ablation *a, struct err *e) BASE_NODISCARD;
/* What was fused, and what the gate said. */
void rdu_ablation_explain(const struct rdu_ablation *a, struct buf *out);

/* ==== Node time ===============================================================================
 * What the same launches and copies would take on a described chip. Never to be mixed with host
 * time: everything below is arithmetic on a chip file (conf/chips), nothing is measured. All
 * functions here are pure and may be called from any thread. */

/* What is known of a chip: section, key, kind of value, must the file give it. Units are in the
 * names; SHARE is a part of a peak, (0, 1]. */
#define RDU_CHIP_FIELDS(X)                                                                         \
    X(node, sockets, SOCKETS, true)                                                                \
    X(node, d2h_bytes_per_s, RATE, true)                                                           \
    X(node, switch_fixed_s, SECONDS, true)                                                         \
    X(node, host_link_bytes_per_s, RATE, true)                                                     \
    X(node, ddr_usable_share, SHARE, true)                                                         \
    X(node, inference_fixed_s, SECONDS, true)                                                      \
    X(socket, pcu, COUNT, false)                                                                   \
    X(socket, pmu, COUNT, false)                                                                   \
    X(socket, clock_hz, RATE, false)                                                               \
    X(socket, peak_bf16_flop_per_s, RATE, true)                                                    \
    X(socket, sram_bytes, BYTES, true)                                                             \
    X(socket, pmu_sram_bytes, BYTES, false)                                                        \
    X(socket, sram_bytes_per_s, RATE, true)                                                        \
    X(socket, hbm_bytes, BYTES, true)                                                              \
    X(socket, hbm_bytes_per_s, RATE, true)                                                         \
    X(socket, ddr_bytes, BYTES, true)                                                              \
    X(socket, ddr_bytes_per_s, RATE, true)                                                         \
    X(socket, d2h_bytes_per_s, RATE, true)                                                         \
    X(socket, p2p_bytes_per_s, RATE, true)                                                         \
    X(socket, p2p_hop_s, SECONDS, true)                                                            \
    X(efficiency, compute, SHARE, true)                                                            \
    X(efficiency, hbm_fused, SHARE, true)                                                          \
    X(efficiency, hbm_unfused, SHARE, true)                                                        \
    X(efficiency, pcu_share_fused, SHARE, true)                                                    \
    X(launch, so_s, SECONDS, true)                                                                 \
    X(launch, ho_s, SECONDS, true)                                                                 \
    X(launch, fill_s, SECONDS, true)

enum rdu_chip_field {
#define RDU_CHIP_ENUM(section, key, kind, required) RDU_CHIP_##section##_##key,
    RDU_CHIP_FIELDS(RDU_CHIP_ENUM)
#undef RDU_CHIP_ENUM
    RDU_CHIP_FIELDS_COUNT,
};
enum rdu_source { RDU_SOURCE_ABSENT, RDU_SOURCE_PUBLISHED, RDU_SOURCE_INFERRED, RDU_SOURCE_GUESS };
const char *rdu_source_name(enum rdu_source s);

/* Where one value comes from, as the file says it. */
struct rdu_chip_note {
    enum rdu_source source;
    char from[120];
    double least, most; /* how far it may be off; both 0 = the file gives no range */
    uint32_t line;      /* in the file */
};
struct rdu_chip {
    char name[32], title[96];
    char origin[200]; /* path of the file, or "built in" */
#define RDU_CHIP_MEMBER(section, key, kind, required) double section##_##key;
    RDU_CHIP_FIELDS(RDU_CHIP_MEMBER)
#undef RDU_CHIP_MEMBER
    struct rdu_chip_note note[RDU_CHIP_FIELDS_COUNT];
};
const char *rdu_chip_key(enum rdu_chip_field f); /* "node.sockets" */
double *rdu_chip_value(struct rdu_chip *c, enum rdu_chip_field f);
/* A path (it has a '/' or ends in .yaml), or the name of a chip: from the folder SWITCHYARD_CHIPS if
 * that is set, else from conf/chips below the working directory if it is there, else the copy that
 * was built in. Errors name file, line and key. */
enum err_code rdu_chip_load(const char *name_or_path, struct rdu_chip *ret, struct err *e)
    BASE_NODISCARD;
/* `shown` names the text in errors. */
enum err_code rdu_chip_parse(const char *text, size_t len, const char *shown, struct rdu_chip *ret,
                             struct err *e) BASE_NODISCARD;

/* Node time by what it was spent on. A kernel's time goes to the resource that bounds it. */
enum rdu_cost {
    RDU_COST_LAUNCH, RDU_COST_FILL, RDU_COST_COMPUTE, RDU_COST_HBM, RDU_COST_SRAM, RDU_COST_P2P,
    RDU_COST_DDR, RDU_COST_HOST, RDU_COST_FIXED, RDU_COSTS,
};
const char *rdu_cost_name(enum rdu_cost c);
struct rdu_clock {
    double s[RDU_COSTS];
    uint64_t launches;
    double flops, hbm_bytes, p2p_bytes; /* of all sockets together */
};
void rdu_clock_add(struct rdu_clock *c, const struct rdu_clock *more, double times);
double rdu_clock_seconds(const struct rdu_clock *c);

/* How kernels are cut and launched: one per operator or one per layer; each launch issued by the host
 * (SO) or from a static schedule (HO); LOOPED: HO, and the whole pass is one launch whose layers loop. */
enum rdu_level { RDU_LEVEL_UNFUSED, RDU_LEVEL_FUSED_SO, RDU_LEVEL_FUSED_HO, RDU_LEVEL_LOOPED };

/* What one kernel does on one socket. hops: latencies of the collectives inside it. */
struct rdu_work {
    double flops, hbm_bytes, ddr_bytes, p2p_bytes, sram_bytes;
    uint32_t hops;
};
/* fill + hops + max over resources (design: launch + fill + max(FLOP/(peak u_c), ...)); the launch is
 * charged apart with rdu_time_launch. Adds to `c`. */
void rdu_time_kernel(const struct rdu_chip *chip, const struct rdu_work *w, bool fused,
                     struct rdu_clock *c);
void rdu_time_launch(const struct rdu_chip *chip, enum rdu_level level, struct rdu_clock *c);
/* A metapipeline: fill + n_tiles * the slowest stage. */
double rdu_time_pipeline_s(double fill_s, uint64_t n_tiles, const double *stage_s, size_t stages);
/* DDR -> HBM over all sockets (what a model switch is), and over the host's link. */
double rdu_time_switch_s(const struct rdu_chip *chip, double bytes);
double rdu_time_host_copy_s(const struct rdu_chip *chip, double bytes);
/* `bytes` is the size of the value that every socket holds in the end. */
enum rdu_collective { RDU_ALL_REDUCE, RDU_ALL_GATHER, RDU_BROADCAST };
struct rdu_work rdu_time_collective(const struct rdu_chip *chip, enum rdu_collective kind,
                                    double bytes);

/* A decoder-only transformer by its shapes alone: no weights, only their number. */
struct rdu_shape {
    const char *name;
    uint32_t layers, width, heads, kv_heads, head_dim, ffn, vocab;
    bool gated;    /* gate and up matrices */
    bool rotary;
    bool parallel; /* attention and MLP side by side from one input */
    bool tied;     /* the head is the embedding */
    double weight_bytes;           /* per weight */
    double density, sparse_share;  /* of the weights that are there; of the dense rate they reach */
    const struct rdu_shape *tower; /* an encoder that runs before the prompt; NULL = none */
    uint32_t tower_tokens;         /* per sequence */
};
const struct rdu_shape *rdu_shape_find(const char *name); /* "llama2-7b"; NULL = unknown */
double rdu_shape_weights(const struct rdu_shape *s);      /* number of them, tower included */
double rdu_shape_bytes(const struct rdu_shape *s);
double rdu_shape_kv_bytes(const struct rdu_shape *s);     /* per token, all layers */

/* One pass over all layers. */
struct rdu_pass {
    double seqs, tokens, outs; /* sequences, tokens in, tokens whose logits are wanted */
    double pairs, square;      /* (query, key) pairs with and without leaving out the masked ones */
    double kv_tokens;          /* tokens of context whose K and V are read */
    bool train;                /* forward and backward */
};
struct rdu_pass rdu_pass_prefill(double seqs, double tokens_each);
struct rdu_pass rdu_pass_decode(double seqs, double context_each);
void rdu_pass_add(struct rdu_pass *p, const struct rdu_pass *more); /* one step of both */
/* Node time of the pass, split over all sockets of the chip (TP). */
void rdu_time_pass(const struct rdu_chip *chip, const struct rdu_shape *shape,
                   const struct rdu_pass *pass, enum rdu_level level, struct rdu_clock *ret);
/* The same for a simulator's millions of steps: what can be summed up beforehand is. Fused levels only;
 * not for shapes with a tower. Borrows chip and shape. */
struct rdu_pass_plan {
    const struct rdu_chip *chip;
    const struct rdu_shape *shape;
    enum rdu_level level;
    struct rdu_work base, per[4]; /* of one layer; per token, pair, square pair, KV token */
    double stay_bytes, out_bytes[5];
    double reduces;
};
void rdu_pass_plan_init(struct rdu_pass_plan *plan, const struct rdu_chip *chip,
                        const struct rdu_shape *shape, enum rdu_level level);
void rdu_pass_plan_time(const struct rdu_pass_plan *plan, const struct rdu_pass *pass,
                        struct rdu_clock *ret);
/* One FFT convolution of `channels` sequences of n0*n1*n2 points as a Monarch graph, on one socket. */
void rdu_time_monarch(const struct rdu_chip *chip, const uint32_t factor[3], double channels,
                      enum rdu_level level, struct rdu_clock *ret);

#endif
