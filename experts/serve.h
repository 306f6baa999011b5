/* The serving side's inside: what experts_open builds from the store. Private to experts/.
 *
 * A `base` is one weight set opened for serving: header, tokenizer, program (shared by shape) and the
 * argument rows of its layers. An expert is a base plus adapters plus names and defaults. Everything here
 * is owned by the engine thread once the server runs; tokenizers, templates and infos are immutable and
 * read by HTTP threads. */
#ifndef SWITCHYARD_EXPERTS_SERVE_H
#define SWITCHYARD_EXPERTS_SERVE_H

#include "experts/experts.h"
#include "experts/kv.h"
#include "experts/model.h"
#include "experts/set.h"

/* A program and the shape it was compiled for. */
struct shape_program {
    struct model_shape shape;
    struct rdu_program *program;
    struct shape_program *next;
};

struct grammar_state;
struct grammar_vocab;

struct base {
    char *set_name;
    struct set_meta *set;
    struct tokenizer *tokenizer;
    struct grammar_vocab *vocab_trie; /* for constrained output; made when first needed */
    struct chat_template *template;  /* NULL = none; template_err says why if it could not be parsed */
    struct err template_err;
    const struct rdu_program *program;
    uint32_t *segs;                  /* memtier index of each segment of the set */
    uint32_t base_idx;

    /* Argument rows; pointers are refreshed when a segment's address changed since the last step. */
    struct rdu_weight *layers;       /* [n_layers, layer slots] */
    const struct set_tensor **layer_tensors;
    struct rdu_weight *globals;      /* [global slots] */
    const struct set_tensor **global_tensors;
    const void ***chunks;            /* [global slots] run addresses, NULL if whole */
    const void **seg_address;        /* [segments] as of the last refresh */
    uint32_t *window;                /* [n_layers] or NULL */
    struct rdu_shape node_shape;     /* for node time */
    struct rdu_pass_plan node_plan;  /* chip NULL = none is kept */
    bool node_unfused;
    struct base *next;
};

/* One adapter set opened over a base. */
struct adapter {
    char *set_name;
    struct set_meta *set;
    uint32_t seg;                    /* memtier index */
    const void *address;             /* as of the last refresh */
    struct rdu_delta *deltas;        /* [n_layers, layer slots]; a, b NULL until resident */
    const struct set_tensor **a, **b;
    double expert_scale;
    struct base *base;
    struct adapter *next;
};

struct expert {
    struct expert_info info;
    struct base *base;               /* NULL if it could not be opened: see error */
    struct adapter *adapters[SET_ADAPTERS_MAX];
    const struct rdu_delta *deltas[SET_ADAPTERS_MAX];
    uint32_t adapters_count;
    struct chat_template *template;  /* own override, else NULL */
    struct err error;
    uint32_t expert_idx;
    uint32_t *load_order;            /* adapters, then the base in load order */
    size_t load_order_count;
    uint64_t bytes, footprint;       /* of load_order; footprint: what it takes of the hbm budget */
};

struct experts {
    struct experts_options opt;
    struct expert *experts;
    size_t count;
    struct base *bases;
    struct adapter *adapters;
    struct shape_program *programs;
    struct expert_step *steps;       /* [max_steps] */
    float *logits;                   /* [max(max_step_items, 32), largest vocabulary]: see step.c */
    size_t logits_floats;
    uint32_t bases_count;
    struct sampler_scratch *scratch; /* sized for the largest vocabulary */
    struct kv_cache *kv;
    size_t pages_wanted;             /* that open sequences may still take */
    double token_seconds;            /* of a prompt's token in a large step, recent */
};

struct sequence {
    struct experts *owner;
    struct expert *expert;
    int32_t *tokens;                 /* [prompt + max_tokens] */
    size_t tokens_count, prompt_count, run_count; /* run: tokens whose K and V are in the pages */
    uint32_t max_tokens;
    struct kv_page **kv;             /* [pages_cap], pages_count of them taken */
    void **pages;                    /* their addresses, for the kernels */
    uint32_t pages_count, pages_cap;
    uint32_t named;                  /* leading pages that have a name (counted, not named, without cache) */
    struct hash128 root, chain;      /* name before the first page; of the last named one */
    size_t page_bytes;
    size_t cached_count;
    bool cache, yielded;
    int32_t draft[SEQUENCE_DRAFT_MAX]; /* guesses behind the last token */
    uint32_t draft_count, draft_pause; /* tokens until guessing is tried again */
    float draft_hits;                /* recent share of right guesses */
    struct sampling sampling;
    struct rng rng;
    bool ended;                      /* an end token was sampled */
    bool hit_limit;
    bool busy;                       /* part of an open step */
    struct grammar_state *grammar;   /* NULL = any token may come next */
    bool grammar_stuck;              /* no token fits: the answer ends here */
    uint32_t logprobs;
    float chosen_logprob;
    uint32_t top_count;
    struct token_logprob top[20];
    const struct prompt_scores *scores; /* NULL = nobody wants the prompt's log-probabilities */
    struct sampler_scratch *scratch; /* shared by the owner's sequences */
};

/* sequence.c: of `drafted` guesses `accepted` were right. */
void sequence_note_draft(struct sequence *s, uint32_t drafted, uint32_t accepted);

/* measure.c */
enum rdu_kv_type kv_type_of(enum expert_kv_type type);

/* sequence.c: pages for the next n tokens, all or none: ERR_BUSY. */
enum err_code sequence_grow(struct sequence *s, uint32_t n, struct err *e) BASE_NODISCARD;
/* n more tokens have been run. */
void sequence_advance(struct sequence *s, uint32_t n);

/* node_time.c: what the modelled chip would take. `before`: tokens the sequence had run. */
void node_time_base(struct base *b, const struct rdu_chip *chip, enum rdu_exec exec);
void node_time_item(struct rdu_pass *p, uint32_t tokens, size_t before, uint32_t outs);
void node_time_step(const struct base *b, const struct rdu_pass *p, uint64_t load_bytes,
                    struct step_stats *ret);

/* arch.c: the whole decoder step of a shape as a graph. */
enum err_code arch_build(const struct model_shape *m, enum rdu_numerics numerics,
                         struct rdu_graph **ret, struct err *e) BASE_NODISCARD;

/* sample.c: pick a token from one row of logits. `history` is prompt + generated. Fills the sequence's
 * log-probabilities if it asked for them. No allocation: scratch is sized for the vocabulary. */
struct sampler_scratch;
struct sampler_scratch *sampler_scratch_open(uint32_t vocab);
void sampler_scratch_close(struct sampler_scratch **s);
int32_t sample_token(struct sequence *s, const float *logits, uint32_t vocab);
/* The log-probability of `id` in a row of logits, and the `want` best tokens in falling order, ties by rising
 * id; returns how many of those there are. */
uint32_t sample_logprobs(const float *logits, uint32_t vocab, int32_t id, uint32_t want, float *ret_logprob,
                         struct token_logprob *ret_top);

/* step.c */
enum err_code steps_open(struct experts *x, struct err *e) BASE_NODISCARD;
void steps_close(struct experts *x);
/* Open a step that makes logits of every token (all_outs) and samples nothing: eval.c. */
enum err_code step_open_eval(struct experts *x, const struct step_item *items, size_t count, bool all_outs,
                             struct expert_step **ret, struct err *e) BASE_NODISCARD;
/* Valid once the step is DONE and until any step is advanced. */
/* The row that the sequence's first new token came of; NULL = it has none. */
const float *step_logits_of(const struct expert_step *s, const struct sequence *seq);
const float *step_logits(const struct expert_step *s, uint32_t out_idx);

#endif
