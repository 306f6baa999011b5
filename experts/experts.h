/* experts/: the models. GGUF files and the store's weight sets, tokenizers, chat templates,
 * architectures as IR graphs, LoRA adapters, KV pages, sequences, sampling, and the step.
 * An expert is what a client can name as `model`: base weights + adapters + template + defaults. */
#ifndef SWITCHYARD_EXPERTS_H
#define SWITCHYARD_EXPERTS_H

#include "base/base.h"
#include "memtier/memtier.h"
#include "rdu/rdu.h"

/* ==== GGUF ==================================================================================== */

/* A parsed header; trusts nothing: every count, length, offset, type, shape and product is checked
 * against the file's size and against limits before anything is allocated. Immutable, any thread. */
struct gguf;

struct gguf_tensor {
    const char *name;
    enum rdu_type type;
    uint32_t dims;
    uint64_t dim[4];      /* GGUF order: dim[0] = columns (contiguous), dim[1] = rows; absent = 1 */
    uint64_t offset;      /* bytes from the start of the tensor data section */
    uint64_t bytes;
    uint32_t split_idx;   /* which file of a split set holds it */
};

/* Open a file (or the first of a split set, whose siblings are found by name). The header is read,
 * tensor data is not touched. ERR_CORRUPT / ERR_UNSUPPORTED / ERR_IO name the file and the field. */
enum err_code gguf_open(const char *path, struct gguf **ret, struct err *e) BASE_NODISCARD;
/* The same over header bytes already in memory (as the store keeps them); `file_bytes` bounds tensor
 * offsets, UINT64_MAX if unknown. The bytes are copied. */
enum err_code gguf_parse(const void *data, size_t len, uint64_t file_bytes, const char *label,
                         struct gguf **ret, struct err *e) BASE_NODISCARD;
void gguf_close(struct gguf **g);

/* Header bytes from the magic up to the end of the tensor table (what the store keeps verbatim). */
const void *gguf_header(const struct gguf *g, size_t *ret_len);
size_t gguf_tensors(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t tensor_idx);
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name); /* NULL = absent */
/* Copy a tensor's bytes from the file; only after gguf_open. */
enum err_code gguf_read_tensor(const struct gguf *g, const struct gguf_tensor *t, void *dst,
                               struct err *e) BASE_NODISCARD;

/* Typed metadata. `find` returns false if absent; a present key of another kind is ERR_CORRUPT from
 * the `get` forms. Integers of any width that fit are accepted. Strings are not NUL-terminated. */
struct gguf_str {
    const char *data;
    size_t len;
};
bool gguf_has(const struct gguf *g, const char *key);
enum err_code gguf_get_u64(const struct gguf *g, const char *key, uint64_t *ret, struct err *e);
enum err_code gguf_get_f64(const struct gguf *g, const char *key, double *ret, struct err *e);
enum err_code gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct err *e);
enum err_code gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *ret, struct err *e);
/* Arrays: element count, then elements by index. */
enum err_code gguf_get_array(const struct gguf *g, const char *key, size_t *ret_count, struct err *e);
enum err_code gguf_array_str(const struct gguf *g, const char *key, size_t idx, struct gguf_str *ret,
                             struct err *e);
/* Whole numeric arrays at once: the pointer is into the header, unaligned; elements of elem_bytes. */
enum err_code gguf_array_f32(const struct gguf *g, const char *key, const void **ret, size_t *ret_count,
                             struct err *e);
enum err_code gguf_array_i32(const struct gguf *g, const char *key, const void **ret, size_t *ret_count,
                             struct err *e);
/* All string elements of an array in one pass (O(n)); *ret is malloc'd, caller frees. */
enum err_code gguf_array_strs(const struct gguf *g, const char *key, struct gguf_str **ret,
                              size_t *ret_count, struct err *e);

/* ==== Tokenizer =============================================================================== */

/* Immutable after open; any thread. */
struct tokenizer;
enum err_code tokenizer_open(const struct gguf *g, struct tokenizer **ret, struct err *e)
    BASE_NODISCARD;
void tokenizer_close(struct tokenizer **t);

/* Tokens of `text` appended to *ret (caller frees ret->ids with free). Byte sequences that are not
 * UTF-8 are encoded as U+FFFD per maximal invalid part. `parse_special`: control tokens in the text
 * become their ids; user-defined tokens always do. No BOS/EOS is added. Time is linear in len. */
struct token_list {
    int32_t *ids;
    size_t count, cap;
};
enum err_code tokenizer_encode(const struct tokenizer *t, const char *text, size_t len,
                               bool parse_special, struct token_list *ret, struct err *e)
    BASE_NODISCARD;
/* Bytes of one token (special tokens give their text when `special`, else nothing). Returns a
 * pointer into the tokenizer and sets *ret_len; NULL for an id out of range. */
const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, bool special,
                                  size_t *ret_len);
int32_t tokenizer_vocab(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t);      /* -1 = none */
int32_t tokenizer_eos(const struct tokenizer *t);      /* -1 = none */
bool tokenizer_add_bos(const struct tokenizer *t);     /* plain text prompts get a BOS in front */
bool tokenizer_is_eog(const struct tokenizer *t, int32_t id); /* any end-of-generation token */
bool tokenizer_is_control(const struct tokenizer *t, int32_t id);
int32_t tokenizer_find(const struct tokenizer *t, const char *text, size_t len); /* -1 = absent */

/* Byte-exact streaming detokeniser: push ids, take what is whole UTF-8; a torn tail is held back. */
struct detok {
    char held[8];
    size_t held_len;
};
/* Appends the new bytes that are complete to `out`; at_end flushes a torn tail as U+FFFD. */
void detok_push(struct detok *d, const struct tokenizer *t, int32_t id, struct buf *out);
void detok_end(struct detok *d, struct buf *out);

/* ==== Chat template =========================================================================== */

/* A compiled Jinja subset (limits on steps, depth and output). Immutable; any thread. Unsupported
 * syntax is ERR_UNSUPPORTED naming it with its line, at compile time where it can be seen. */
struct chat_template;
enum err_code template_parse(const char *source, size_t len, struct chat_template **ret,
                             struct err *e) BASE_NODISCARD;
void template_close(struct chat_template **t);

/* What a template is rendered over, as JSON text so that no JSON library shows in this header:
 * `messages_json` an array, `tools_json` an array or NULL, `extra_json` an object of further
 * variables or NULL. `now` is what strftime_now formats, seconds since the epoch. */
struct template_input {
    const char *messages_json, *tools_json, *extra_json;
    bool add_generation_prompt;
    const char *bos_token, *eos_token;
    int64_t now;
};
/* ERR_INVALID with the template's own message when it called raise_exception. */
enum err_code template_render(const struct chat_template *t, const struct template_input *in,
                              struct buf *ret_text, struct err *e) BASE_NODISCARD;
/* NULL-terminated list of the supported features, one short line each. */
const char *const *template_features(void);

/* ==== Sentence encoders ======================================================================== */

/* A BERT-class model that maps a text to one vector of length 1: what the router compares prompts by
 * and what /v1/embeddings answers. Its weights are its own, outside the store and its budgets. */
struct encoder;
struct encoder_options {
    const char *path; /* a folder with config.json, model.safetensors and vocab.txt or tokenizer.json,
                         or a GGUF file of architecture bert */
    enum rdu_numerics numerics;
    enum rdu_exec exec;
    const char *cpu;  /* as rdu_node_options.cpu */
};
enum err_code encoder_open(const struct encoder_options *opt, struct encoder **ret, struct err *e)
    BASE_NODISCARD;
void encoder_close(struct encoder **n);
const char *encoder_name(const struct encoder *n);       /* of its folder or file */
uint32_t encoder_width(const struct encoder *n);         /* floats of a vector */
uint32_t encoder_tokens_max(const struct encoder *n);    /* of a text, [CLS] and [SEP] included */
uint64_t encoder_id(const struct encoder *n);            /* hash of its weights before quantising */
size_t encoder_bytes(const struct encoder *n);           /* of its weights in memory */
const struct tokenizer *encoder_tokenizer(const struct encoder *n);

/* Text, or token ids without [CLS] and [SEP]. */
struct encoder_text {
    const char *text;
    const int32_t *ids; /* instead of text; NULL = text */
    size_t len;         /* bytes, or ids */
};
/* Vectors [count, width] of `count` texts, batched: many texts cost less each than one. Of a text with
 * more than `tokens_max` tokens (0 = the model's limit) the start and the end count. ret_tokens (may be
 * NULL): tokens that were run. One caller at a time. ERR_INVALID: a token id that does not exist. */
enum err_code encoder_encode(struct encoder *n, const struct encoder_text *texts, size_t count,
                             uint32_t tokens_max, float *ret, uint64_t *ret_tokens,
                             struct err *e) BASE_NODISCARD;

/* ==== The registry: experts in a store ======================================================== */

struct experts;
struct expert;

enum expert_kv_type { EXPERT_KV_F16, EXPERT_KV_F32, EXPERT_KV_Q8_0 }; /* Q8_0 not with RDU_EXEC_INTERP */

struct sampling {
    float temperature;        /* 0 = greedy */
    float top_p, min_p, typical_p;
    int32_t top_k;            /* 0 = off */
    float repetition_penalty, frequency_penalty, presence_penalty;
    uint64_t seed;
    const struct logit_bias { int32_t id; float bias; } *bias;
    size_t bias_count;
    bool ignore_eos;
    uint32_t min_tokens;
};
void sampling_init(struct sampling *s); /* temperature 1, everything else off */

/* Import a GGUF model or LoRA adapter into the store as an expert. Says what it will write through
 * `progress`; idempotent for equal content; a crash at any point leaves the old or the new store. */
struct expert_add_options {
    const char *path;         /* GGUF file */
    const char *name;
    const char *base;         /* adapters: the expert whose weights they sit on; NULL = full model */
    double scale;             /* adapters; 0 = 1 */
    const char *description, *system, *template_source; /* NULL = none */
    const char *const *aliases;
    size_t aliases_count;
    const char *licence;
};
struct expert_add_report {
    uint64_t bytes_read, bytes_written, bytes_shared;
    uint32_t segments, segments_shared;
};
enum err_code experts_add(struct memtier_store *store, const struct expert_add_options *opt,
                          const struct progress *progress, struct expert_add_report *ret,
                          struct err *e) BASE_NODISCARD;
enum err_code experts_remove(struct memtier_store *store, const char *name, struct err *e)
    BASE_NODISCARD;
/* Write base + adapters merged as a Q8_0 GGUF (F32 norms kept) / give back the original tensors. */
enum err_code experts_merge(struct memtier_store *store, const char *name, const char *out_path,
                            const struct progress *progress, struct err *e) BASE_NODISCARD;
enum err_code experts_export(struct memtier_store *store, const char *name, const char *out_path,
                             const struct progress *progress, struct err *e) BASE_NODISCARD;

/* A copy of a GGUF file (model or adapter) with one low bit changed in every 256 bytes of its tensors, as the
 * seed says: distinct weights of the same behaviour, for benches and tests. Written whole or not at all. */
enum err_code experts_vary(const char *path, const char *out_path, uint64_t seed, struct err *e)
    BASE_NODISCARD;

/* What the store knows of an expert, without opening it for serving. Strings live until _done. */
struct expert_info {
    char *name, *base, *description, *system, *architecture, *types, *licence;
    char **aliases;
    size_t aliases_count;
    double scale;
    uint64_t bytes;           /* of its own weights or adapter */
    uint64_t parameters;
    uint32_t context, layers;
    uint64_t created_s;       /* seconds since the epoch */
    bool is_adapter;
};
enum err_code experts_list(struct memtier_store *store, struct expert_info **ret, size_t *ret_count,
                           struct err *e) BASE_NODISCARD;
void experts_list_done(struct expert_info *list, size_t count);
/* What the named experts take of the hbm budget together, shared segments once. Unknown names are
 * ERR_NOT_FOUND. */
enum err_code experts_footprint(struct memtier_store *store, const char *const *names, size_t count,
                                uint64_t *ret_bytes, struct err *e) BASE_NODISCARD;
/* KV bytes that one token of the most demanding model of the store takes; 0 for an empty store. */
enum err_code experts_kv_token_bytes(struct memtier_store *store, enum expert_kv_type type,
                                     uint64_t *ret, struct err *e) BASE_NODISCARD;

/* ==== Constrained output ======================================================================== */

/* What an answer must look like, compiled to an automaton over bytes. Immutable and reference-counted;
 * any thread. White space between JSON tokens is at most one character. */
struct grammar;
/* GBNF text, rule `root`. Left recursion and undefined rules are ERR_INVALID. */
enum err_code grammar_compile_gbnf(const char *text, size_t len, struct grammar **ret, struct err *e)
    BASE_NODISCARD;
/* A JSON Schema as JSON text. `param` names the request's field; errors name it and the path inside.
 * ERR_UNSUPPORTED: a keyword that is not done here, never ignored. Members come in the order of
 * `properties`; members that `properties` does not name are made only if `additionalProperties` says so. */
enum err_code grammar_compile_schema(const char *json, size_t len, const char *param,
                                     struct grammar **ret, struct err *e) BASE_NODISCARD;
/* Any JSON object. */
enum err_code grammar_compile_json_object(struct grammar **ret, struct err *e) BASE_NODISCARD;

/* How a model writes calls of functions: marker open NAME middle ARGUMENTS end, and for one more: between
 * again NAME middle ARGUMENTS end. Only open and between may be empty. */
struct grammar_call_form {
    const char *marker, *open, *middle, *end, *between, *again;
    bool anchored;           /* the marker counts at the very beginning of an answer only */
};
struct grammar_tool {
    const char *name;        /* letters, digits, '_' and '-' */
    const char *schema;      /* JSON text of the arguments' schema; NULL = any object */
    const char *param;       /* the request's field, for errors */
    bool must_hold;          /* else a schema with an unsupported keyword is replaced by any object */
};
enum grammar_tools_start {
    GRAMMAR_TOOLS_AT_TEXT,      /* any text may come before calls, or instead of them */
    GRAMMAR_TOOLS_AT_NAME,      /* marker and open stand at the end of the prompt */
    GRAMMAR_TOOLS_AT_ARGUMENTS, /* so do the name of tools[0] and middle, less a blank at its end */
};
struct grammar_tools {
    const struct grammar_tool *tools;
    size_t count;
    const struct grammar_call_form *form;
    enum grammar_tools_start start;
    uint32_t calls_max;
    bool answer_is_json;       /* AT_TEXT: an answer without a call is of answer_schema (NULL = any object) */
    const char *answer_schema, *answer_param;
};
enum err_code grammar_compile_tools(const struct grammar_tools *opt, struct grammar **ret, struct err *e)
    BASE_NODISCARD;
struct grammar *grammar_ref(struct grammar *g); /* NULL is allowed */
void grammar_unref(struct grammar **g);         /* sets NULL */

/* ==== Serving ================================================================================= */

struct experts_options {
    struct memtier_store *store;
    struct memtier *memtier;
    struct rdu_node *node;
    enum rdu_numerics numerics;
    enum rdu_exec exec;
    enum expert_kv_type kv_type;
    uint32_t kv_page_tokens;  /* multiple of RDU_KV_BLOCK; 0 = 32 */
    uint32_t max_step_tokens; /* tokens of one step over all its items; 0 = 512 */
    uint32_t max_step_items;  /* sequences of one step; 0 = 32 */
    uint32_t max_steps;       /* steps open at once (one runs, others wait for loads); 0 = 4 */
    const struct rdu_chip *chip; /* for node time; borrowed, NULL = none is kept */
    struct rdu_native *native; /* compiles the programs of exec native; NULL = they stay fused */
};
/* Open every expert of the store: headers, tokenizers and templates (shared by hash), programs by
 * shape. No weights are loaded. An expert that cannot be opened is kept with its error. */
enum err_code experts_open(const struct experts_options *opt, struct experts **ret, struct err *e)
    BASE_NODISCARD;
void experts_close(struct experts **x);
size_t experts_count(const struct experts *x);
struct expert *experts_at(struct experts *x, size_t expert_idx);
struct expert *experts_find(struct experts *x, const char *name_or_alias); /* NULL = absent */

const struct expert_info *expert_info(const struct expert *ex);
uint32_t expert_index(const struct expert *ex);       /* 0..experts_count-1 */
uint32_t expert_base_index(const struct expert *ex);  /* experts with equal values share a batch */
const struct tokenizer *expert_tokenizer(const struct expert *ex);
const struct chat_template *expert_template(const struct expert *ex); /* NULL = the model has none */
uint32_t expert_context(const struct expert *ex);
bool expert_ok(const struct expert *ex, struct err *e); /* false: why it cannot serve */
/* The segments an expert needs, in load order; the array belongs to the expert. */
const uint32_t *expert_segments(const struct expert *ex, size_t *ret_count);
uint64_t expert_bytes(const struct expert *ex);       /* of those segments, shared ones included */
uint64_t expert_footprint(const struct expert *ex);   /* what they take of the hbm budget: a little more */
/* The leading ones of expert_segments that are its adapters' (0 for a full model). */
size_t expert_adapter_segments(const struct expert *ex);

/* ---- sequences: one generation timeline. Owned by the engine thread. ---- */

struct sequence;
/* What the model thought of each prompt token: the caller's memory, filled while the prompt runs and whole
 * when the sequence has its first own token (or is done without one). Entry i belongs to token i; entry 0 has
 * nothing before it and is never written. */
struct prompt_scores {
    float *logprob;            /* [tokens_count] */
    struct token_logprob *top; /* [tokens_count, top_count] falling, or NULL */
    uint32_t top_count;        /* <= 20 */
};
struct sequence_options {
    struct expert *expert;
    const int32_t *tokens;    /* the prompt, copied */
    size_t tokens_count;
    uint32_t max_tokens;      /* completion tokens; prompt + max_tokens <= context */
    struct sampling sampling; /* bias copied */
    uint32_t logprobs;        /* top alternatives wanted per token, 0 = none, <= 20; 255 = chosen only */
    struct grammar *grammar;  /* what the answer must be, within max_tokens if that can be; NULL = anything. The
                                 sequence takes its own reference. */
    const struct prompt_scores *scores; /* NULL = not wanted; outlives the sequence. Every prompt token is run. */
    bool cache;               /* begin with KV pages that are there already, leave one's own to others */
};
/* Could such a sequence ever run? ERR_CONTEXT or ERR_NO_MEMORY with the numbers. Any thread. */
enum err_code experts_check_fit(const struct experts *x, const struct expert *ex, size_t prompt_tokens,
                                uint32_t max_tokens, struct err *e) BASE_NODISCARD;
/* KV bytes that a sequence of so many tokens takes from hbm. Any thread. */
uint64_t experts_kv_bytes(const struct experts *x, const struct expert *ex, size_t tokens);
/* Takes no KV pages yet: steps do as they need them. ERR_NO_MEMORY if the whole of it can never fit. */
enum err_code sequence_open(struct experts *x, const struct sequence_options *opt,
                            struct sequence **ret, struct err *e) BASE_NODISCARD;
void sequence_close(struct sequence **s);
struct expert *sequence_expert(const struct sequence *s);
size_t sequence_tokens(const struct sequence *s);         /* prompt + generated so far */
size_t sequence_pending(const struct sequence *s);        /* tokens not yet run: prompt left, or 1 */
size_t sequence_generated(const struct sequence *s);
int32_t sequence_last_token(const struct sequence *s);
bool sequence_done(const struct sequence *s, bool *ret_hit_limit); /* EOS seen, or the cap */
/* Token number idx of the answer. A step may bring several when it checked guesses. */
int32_t sequence_answer(const struct sequence *s, size_t idx);
/* Guess up to `most` next tokens by looking where the last ones occurred before (prompt lookup); the next step that
 * runs all that is pending checks them, and keeps those that sampling gives anyway: no token differs, several may
 * come of one step. Nothing is guessed for a while after guesses that were mostly wrong. Returns how many. */
#define SEQUENCE_DRAFT_MAX 8
uint32_t sequence_draft(struct sequence *s, uint32_t most);
/* ---- KV pages of a sequence. Not while it is in a step. ---- */
/* Take what the cache has of the pending tokens, all but the last: whole pages by reference, the beginning of
 * one by copy. Worth calling whenever a step is about to run several of them. Returns how many it spared. */
size_t sequence_adopt(struct sequence *s);
/* Begin to bring back what of the pending tokens' pages is in the spill file, if that takes less than computing it.
 * *ret is set where something is on its way: adopt when all of it is ready, then release it. */
void sequence_fetch(struct sequence *s, uint64_t now_ns, struct memtier_lease **ret);
/* It could not be read: compute it. */
void sequence_fetch_failed(struct sequence *s);
/* The same from another sequence of the expert, cached or not: for choices of one prompt. */
size_t sequence_fork(struct sequence *s, const struct sequence *from);
/* `ahead` is about to compute the page that `s` needs next: whoever waits for it need not compute it twice. */
bool sequence_shares_next_page(const struct sequence *s, const struct sequence *ahead);
/* Prompt tokens that were not computed for this sequence. */
size_t sequence_cached(const struct sequence *s);
/* Give all pages back; what was in them is computed again, or still found in the cache, when it goes on. */
void sequence_yield(struct sequence *s);
/* Log-probability of the last token and the top alternatives (as asked at open). */
struct token_logprob {
    int32_t id;
    float logprob;
};
size_t sequence_logprobs(const struct sequence *s, float *ret_chosen, struct token_logprob *ret_top,
                         size_t cap);

/* ---- the step: a resumable cursor over stages. Engine thread. ---- */

struct expert_step;
struct step_item {
    struct sequence *seq;
    uint32_t n_tokens;        /* how many pending tokens to run, >= 1 */
};
enum step_state {
    STEP_DONE,                /* every sequence whose pending tokens are all run has one new token */
    STEP_BLOCKED,             /* the next stage's segments are still loading */
    STEP_FAILED,              /* a load failed; the err says which and why */
};
struct step_stats {
    uint64_t load_wait_ns;    /* from open to the last segment resident */
    uint64_t run_ns;          /* host time inside rdu_node_run */
    uint64_t node_ns;         /* node time charged, 0 without a chip: the sum of the next two */
    uint64_t node_run_ns, node_load_ns;
    uint64_t load_bytes;      /* brought in for this step */
    enum memtier_tier origin; /* where the slowest part came from: HBM = all resident */
    uint32_t tokens, sequences, adapters;
    uint32_t drafted, accepted; /* guessed tokens that were checked, and that were right */
};
/* All items share one base (expert_base_index). Reserves all segments or none:
 * ERR_BUSY = not now (pinned by other steps, or no room for KV pages), ERR_NO_MEMORY = can never fit. */
enum err_code expert_step_open(struct experts *x, const struct step_item *items, size_t count,
                               struct expert_step **ret, struct err *e) BASE_NODISCARD;
/* Run from the next stage to the last resident one. Never waits. */
enum step_state expert_step_advance(struct expert_step *s, struct err *e);
void expert_step_stats(const struct expert_step *s, struct step_stats *ret);
uint64_t expert_step_missing_bytes(const struct expert_step *s); /* of load_bytes, what is still on its way */
/* Releases the pins; a step not DONE is cancelled: its sequences stay as before it. */
void expert_step_close(struct expert_step **s);

/* ---- direct evaluation for tests, bench and explain ---- */

/* Run `tokens` on a fresh sequence and copy the logits of every position (all = true) or of the last
 * into `logits` [n or 1, vocab] f32. Blocks on loads. `chunk` = tokens per step, 0 = all at once. */
enum err_code experts_logits(struct experts *x, struct expert *ex, const int32_t *tokens, size_t count,
                             bool all, uint32_t chunk, float *logits, struct err *e) BASE_NODISCARD;
/* The program an expert runs (for explain and tests). */
const struct rdu_program *expert_program(const struct expert *ex);

#endif
