/* The step: one batch of prefill chunks and decode tokens over one base, as a cursor over stages. It pins
 * all segments it will touch in the order it will touch them and runs as far as they have arrived, so a cold
 * expert starts to compute when its first layer is in. Every table is allocated when the experts open: a
 * step allocates nothing. Steps have their own hidden states, as a step may stop after any layer, but share
 * one buffer of logits: the head runs last and its rows are sampled before another step moves. */
#include <stdlib.h>
#include <string.h>

#include "experts/serve.h"

struct expert_step {
    struct experts *owner;
    struct base *base;
    bool open, eval;
    bool scored;                    /* some prompt wants the log-probabilities of its tokens */
    uint32_t items_count, n_tokens, n_outs, groups_count, adapters_count;
    struct sequence **seq;          /* [max_step_items] */
    uint32_t *item_tokens;          /* [max_step_items] */
    int32_t *out_of_item;           /* [max_step_items] row of its logits or -1 */
    uint32_t *drafts;               /* [max_step_items] guessed tokens behind its own; a row each more */

    int32_t *tokens;                /* [max_step_tokens] */
    uint32_t *pos, *seq_idx, *outs; /* [max_step_tokens] */
    uint32_t *score_outs;           /* [logits rows] the rows of a piece of a scored prompt */
    void *const **kv_pages;         /* [max_step_items] */
    struct rdu_token_group *groups; /* [max_step_items] */
    struct adapter **adapters;      /* [max_step_items * SET_ADAPTERS_MAX], distinct */
    float *x;
    size_t logits_stride;

    uint32_t *segs;                 /* load order of this step */
    size_t segs_count, segs_cap;
    size_t ready_for_embed;         /* leading segments that stage 0 needs */
    struct memtier_lease *lease;
    struct rdu_args args;
    uint32_t stage, stages;         /* next stage to run; layers + 2 in all (+ 1 less without outs) */
    struct step_stats stats;
    uint64_t opened_ns;
    uint8_t *run_seen;              /* [embedding runs] touched by the step's tokens */
    size_t run_seen_cap;
};

/* ---- tables ------------------------------------------------------------------------------------------ */

/* Not touched here: 256 rows of a vocabulary of 256,000 take memory only where they are used. */
static float *map_floats(size_t rows, size_t width)
{
    size_t bytes;
    if (!size_mul(rows, width, &bytes) || !size_mul(bytes, sizeof(float), &bytes) ||
        !size_add(bytes, 63, &bytes))
        return NULL;
    return aligned_alloc(64, bytes & ~(size_t)63);
}

static void step_free(struct expert_step *s)
{
    free(s->seq);
    free(s->item_tokens);
    free(s->out_of_item);
    free(s->drafts);
    free(s->tokens);
    free(s->pos);
    free(s->seq_idx);
    free(s->outs);
    free(s->score_outs);
    free((void *)s->kv_pages);
    free(s->groups);
    free(s->adapters);
    free(s->x);
    free(s->segs);
    free(s->run_seen);
}

/* Room for any base of the store: the widest x, the largest vocabulary, the longest load order. */
struct extents {
    size_t x_width, vocab, segments, runs;
};

static struct extents extents_of(const struct experts *x)
{
    struct extents m = {16, RDU_GROUP, 1, 1};
    for (const struct base *b = x->bases; b; b = b->next) {
        m.x_width = BASE_MAX(m.x_width, ((size_t)rdu_program_width(b->program) + 15) & ~(size_t)15);
        m.vocab = BASE_MAX(m.vocab, ((size_t)rdu_program_vocab(b->program) + 15) & ~(size_t)15);
        m.segments = BASE_MAX(m.segments, b->set->segments);
        m.runs = BASE_MAX(m.runs, BASE_MAX(b->set->embed_runs, b->set->head_runs));
    }
    return m;
}

/* Rows of the shared logits. */
static uint32_t logits_rows(const struct experts *x)
{
    return BASE_MAX(x->opt.max_step_items, 32);
}

static enum err_code step_alloc(struct experts *x, struct expert_step *s, const struct extents *m,
                                struct err *e)
{
    size_t items = x->opt.max_step_items, tokens = x->opt.max_step_tokens;
    s->owner = x;
    s->seq = mem_array(items, sizeof(*s->seq));
    s->item_tokens = mem_array(items, sizeof(*s->item_tokens));
    s->out_of_item = mem_array(items, sizeof(*s->out_of_item));
    s->drafts = mem_array(items, sizeof(*s->drafts));
    s->tokens = mem_array(tokens, sizeof(*s->tokens));
    s->pos = mem_array(tokens, sizeof(*s->pos));
    s->seq_idx = mem_array(tokens, sizeof(*s->seq_idx));
    s->outs = mem_array(tokens, sizeof(*s->outs));
    s->score_outs = mem_array(logits_rows(x), sizeof(*s->score_outs));
    s->kv_pages = mem_array(items, sizeof(*s->kv_pages));
    s->groups = mem_array(items, sizeof(*s->groups));
    s->adapters = mem_array(items * SET_ADAPTERS_MAX, sizeof(*s->adapters));
    s->segs_cap = m->segments + items * SET_ADAPTERS_MAX;
    s->segs = mem_array(s->segs_cap, sizeof(*s->segs));
    s->run_seen_cap = m->runs;
    s->run_seen = mem_array(m->runs, 1);
    s->x = map_floats(tokens, m->x_width);
    if (s->x == NULL)
        return err_set(e, ERR_NO_MEMORY, "cannot allocate the hidden states of %zu tokens", tokens);
    return ERR_OK;
}

static enum err_code logits_alloc(struct experts *x, const struct extents *m, struct err *e)
{
    size_t rows = logits_rows(x);
    x->logits_floats = rows * m->vocab;
    x->logits = map_floats(rows, m->vocab);
    if (x->logits == NULL)
        return err_set(e, ERR_NO_MEMORY, "cannot allocate %zu rows of %zu logits", rows, m->vocab);
    return ERR_OK;
}

enum err_code steps_open(struct experts *x, struct err *e)
{
    struct extents m = extents_of(x);
    x->steps = mem_array(x->opt.max_steps, sizeof(*x->steps));
    for (uint32_t i = 0; i < x->opt.max_steps; i++) {
        enum err_code code = step_alloc(x, &x->steps[i], &m, e);
        if (code != ERR_OK)
            return code;
    }
    x->scratch = sampler_scratch_open((uint32_t)m.vocab);
    return logits_alloc(x, &m, e);
}

void steps_close(struct experts *x)
{
    for (uint32_t i = 0; x->steps && i < x->opt.max_steps; i++)
        step_free(&x->steps[i]);
    free(x->steps);
    free(x->logits);
    x->steps = NULL;
    x->logits = NULL;
    sampler_scratch_close(&x->scratch);
}

/* ---- opening ------------------------------------------------------------------------------------------- */

static void add_adapters(struct expert_step *s, const struct expert *ex)
{
    for (uint32_t i = 0; i < ex->adapters_count; i++) {
        uint32_t k = 0;
        while (k < s->adapters_count && s->adapters[k] != ex->adapters[i])
            k++;
        if (k == s->adapters_count)
            s->adapters[s->adapters_count++] = ex->adapters[i];
    }
}

/* Items of one expert are neighbours, so that a token group is one run of tokens. Insertion by expert
 * index: a step has few items and they mostly come sorted. */
static void sort_items(struct expert_step *s)
{
    for (uint32_t i = 1; i < s->items_count; i++) {
        struct sequence *seq = s->seq[i];
        uint32_t tokens = s->item_tokens[i], k = i;
        for (; k > 0 && s->seq[k - 1]->expert->expert_idx > seq->expert->expert_idx; k--) {
            s->seq[k] = s->seq[k - 1];
            s->item_tokens[k] = s->item_tokens[k - 1];
        }
        s->seq[k] = seq;
        s->item_tokens[k] = tokens;
    }
}

/* Guesses that this step can check: it runs all that is pending and has room for their tokens and logits. */
static uint32_t draft_tokens(const struct expert_step *s, uint32_t item, bool all_outs, uint32_t tokens_left)
{
    const struct sequence *seq = s->seq[item];
    uint32_t rows_left = logits_rows(s->owner) - s->n_outs, items_left = s->items_count - item;
    if (all_outs || seq->run_count + s->item_tokens[item] != seq->tokens_count || rows_left <= items_left)
        return 0;
    return BASE_MIN(BASE_MIN(seq->draft_count, tokens_left), rows_left - items_left);
}

static void add_item_tokens(struct expert_step *s, uint32_t item, bool all_outs, uint32_t drafts)
{
    const struct sequence *seq = s->seq[item];
    uint32_t n = s->item_tokens[item];
    for (uint32_t i = 0; i < n + drafts; i++) {
        uint32_t t = s->n_tokens + i;
        s->tokens[t] = i < n ? seq->tokens[seq->run_count + i] : seq->draft[i - n];
        s->pos[t] = (uint32_t)(seq->run_count + i);
        s->seq_idx[t] = item;
        if (all_outs)
            s->outs[s->n_outs++] = t;
    }
    s->out_of_item[item] = -1;
    s->drafts[item] = drafts;
    if (!all_outs && seq->run_count + n == seq->tokens_count) {
        s->out_of_item[item] = (int32_t)s->n_outs;
        for (uint32_t i = 0; i <= drafts; i++)
            s->outs[s->n_outs++] = s->n_tokens + n - 1 + i;
    }
    s->kv_pages[item] = seq->pages;
    s->n_tokens += n + drafts;
}

static void add_group(struct expert_step *s, uint32_t item, uint32_t token_from, uint32_t tokens)
{
    const struct expert *ex = s->seq[item]->expert;
    if (item > 0 && s->seq[item - 1]->expert == ex) {
        s->groups[s->groups_count - 1].token_count += tokens;
        return;
    }
    s->groups[s->groups_count++] = (struct rdu_token_group){
        .token_from = token_from, .token_count = tokens,
        .deltas = ex->deltas, .adapters_count = ex->adapters_count};
}

static void add_seg(struct expert_step *s, uint32_t seg)
{
    s->segs[s->segs_count++] = seg;
}

/* Which runs of the embedding the step's tokens need: these few load first, so that layer 0 can start. */
static void mark_embedding_runs(struct expert_step *s)
{
    const struct set_meta *set = s->base->set;
    const struct set_tensor *t = set_find(set, "token_embd.weight");
    memset(s->run_seen, 0, s->run_seen_cap);
    for (uint32_t i = 0; i < s->n_tokens; i++)
        s->run_seen[set->embed_runs > 1 ? (uint32_t)s->tokens[i] / t->run_rows : 0] = 1;
}

/* Load order: touched embedding runs, adapters, layers, small globals, then the head. */
static void make_segs(struct expert_step *s)
{
    const struct base *b = s->base;
    const struct set_meta *set = b->set;
    bool tied = set->head_segment == set->embed_segment;
    s->segs_count = 0;
    mark_embedding_runs(s);
    for (uint32_t i = 0; i < set->embed_runs; i++)
        if (s->run_seen[i])
            add_seg(s, b->segs[set->embed_segment + i]);
    for (uint32_t i = 0; i < s->adapters_count; i++)
        add_seg(s, s->adapters[i]->seg);
    s->ready_for_embed = s->segs_count;
    for (uint32_t i = 0; i < set->shape.layers; i++)
        add_seg(s, b->segs[set->layer_segment + i]);
    if (s->n_outs == 0 && !s->scored)
        return;
    add_seg(s, b->segs[set->norm_segment]);
    for (uint32_t i = 0; i < set->head_runs; i++)
        if (!tied || !s->run_seen[i])
            add_seg(s, b->segs[set->head_segment + i]);
}

static void fill_args(struct expert_step *s)
{
    const struct experts *x = s->owner;
    const struct base *b = s->base;
    s->logits_stride = ((size_t)rdu_program_vocab(b->program) + 15) & ~(size_t)15;
    s->args = (struct rdu_args){
        .n_tokens = s->n_tokens, .n_outs = s->n_outs, .n_layers = b->set->shape.layers,
        .tokens = s->tokens, .pos = s->pos, .seq = s->seq_idx, .kv_pages = s->kv_pages,
        .kv_page_tokens = x->opt.kv_page_tokens,
        .kv_type = kv_type_of(x->opt.kv_type),
        .outs = s->outs, .globals = b->globals, .layers = b->layers, .window = b->window,
        .groups = s->groups, .groups_count = s->groups_count,
        .x = s->x, .logits = x->logits, .logits_stride = s->logits_stride};
    s->stages = b->set->shape.layers + (s->n_outs || s->scored ? 2 : 1);
}

static struct expert_step *find_free(struct experts *x)
{
    for (uint32_t i = 0; i < x->opt.max_steps; i++)
        if (!x->steps[i].open)
            return &x->steps[i];
    return NULL;
}

/* Once the weights have their place: pages must not push out what this step needs. */
static enum err_code take_pages(struct expert_step *s, struct err *e)
{
    enum err_code code = ERR_OK;
    for (uint32_t i = 0; code == ERR_OK && i < s->items_count; i++)
        code = sequence_grow(s->seq[i], s->item_tokens[i] + s->drafts[i], e);
    if (code != ERR_OK)
        memtier_release(s->owner->opt.memtier, &s->lease);
    return code;
}

static enum err_code check_items(const struct experts *x, const struct step_item *items, size_t count,
                                 struct err *e)
{
    uint64_t tokens = 0;
    if (count == 0 || count > x->opt.max_step_items)
        return err_set(e, ERR_INVALID, "a step has 1 to %u sequences, not %zu", x->opt.max_step_items, count);
    for (size_t i = 0; i < count; i++) {
        const struct sequence *s = items[i].seq;
        if (s->busy || items[i].n_tokens == 0 || items[i].n_tokens > sequence_pending(s) ||
            s->expert->base != items[0].seq->expert->base)
            return err_set(e, ERR_INTERNAL, "step item %zu: busy, of another base, or %u of %zu tokens", i,
                           items[i].n_tokens, sequence_pending(s));
        tokens += items[i].n_tokens;
    }
    if (tokens > x->opt.max_step_tokens)
        return err_set(e, ERR_INVALID, "a step has at most %u tokens, not %llu", x->opt.max_step_tokens,
                       (unsigned long long)tokens);
    return ERR_OK;
}

enum err_code step_open_eval(struct experts *x, const struct step_item *items, size_t count, bool all_outs,
                             struct expert_step **ret, struct err *e)
{
    enum err_code code = check_items(x, items, count, e);
    if (code != ERR_OK)
        return code;
    struct expert_step *s = find_free(x);
    if (s == NULL)
        return err_set(e, ERR_BUSY, "all %u steps are open", x->opt.max_steps);
    s->base = items[0].seq->expert->base;
    s->items_count = (uint32_t)count;
    s->n_tokens = s->n_outs = s->groups_count = s->adapters_count = s->stage = 0;
    s->scored = false;
    for (uint32_t i = 0; i < count; i++) {
        s->seq[i] = items[i].seq;
        s->item_tokens[i] = items[i].n_tokens;
    }
    sort_items(s);
    uint32_t tokens_left = x->opt.max_step_tokens;
    for (uint32_t i = 0; i < count; i++)
        tokens_left -= s->item_tokens[i];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t drafts = draft_tokens(s, i, all_outs, tokens_left);
        tokens_left -= drafts;
        add_group(s, i, s->n_tokens, s->item_tokens[i] + drafts);
        add_item_tokens(s, i, all_outs, drafts);
        add_adapters(s, s->seq[i]->expert);
        s->scored |= s->seq[i]->scores != NULL && !all_outs;
    }
    make_segs(s);
    fill_args(s);
    if (s->n_outs * s->logits_stride > x->logits_floats)
        return err_set(e, ERR_INVALID, "%u rows of logits do not fit a step", s->n_outs);
    s->opened_ns = clock_ns();
    code = memtier_reserve(x->opt.memtier, s->segs, s->segs_count, s->opened_ns, &s->lease, e);
    if (code == ERR_OK)
        code = take_pages(s, e);
    if (code != ERR_OK)
        return code;
    s->open = true;
    s->eval = all_outs;
    s->stats = (struct step_stats){.load_bytes = memtier_lease_load_bytes(s->lease),
                                   .origin = memtier_lease_origin(s->lease), .tokens = s->n_tokens,
                                   .sequences = s->items_count, .adapters = s->adapters_count};
    for (uint32_t i = 0; i < count; i++)
        s->seq[i]->busy = true;
    *ret = s;
    return ERR_OK;
}

enum err_code expert_step_open(struct experts *x, const struct step_item *items, size_t count,
                               struct expert_step **ret, struct err *e)
{
    return step_open_eval(x, items, count, false, ret, e);
}

/* ---- addresses -------------------------------------------------------------------------------------------- */

static const void *tensor_address(const struct experts *x, const struct base *b, const struct set_tensor *t)
{
    return (const char *)memtier_ptr(x->opt.memtier, b->segs[t->segment]) + t->offset;
}

/* A segment keeps its address while it is resident, so most steps find nothing to do here. */
static bool address_changed(const struct experts *x, struct base *b, uint32_t segment)
{
    const void *now = memtier_ptr(x->opt.memtier, b->segs[segment]);
    if (b->seg_address[segment] == now)
        return false;
    b->seg_address[segment] = now;
    return true;
}

static void refresh_layer(const struct experts *x, struct base *b, uint32_t layer)
{
    if (!address_changed(x, b, b->set->layer_segment + layer))
        return;
    uint32_t per_layer = rdu_program_slots(b->program, RDU_SECTION_LAYER);
    for (uint32_t i = layer * per_layer; i < (layer + 1) * per_layer; i++)
        b->layers[i].data = tensor_address(x, b, b->layer_tensors[i]);
}

/* Runs of the embedding that no token touches keep a stale address: nothing reads it. */
static void refresh_globals(const struct experts *x, struct base *b, const struct expert_step *s, bool head)
{
    uint32_t globals = rdu_program_slots(b->program, RDU_SECTION_HEAD);
    for (uint32_t i = 0; i < globals; i++) {
        const struct set_tensor *t = b->global_tensors[i];
        bool is_embedding = t->segment == b->set->embed_segment;
        if (!head && !is_embedding)
            continue;
        if (t->runs <= 1) {
            b->globals[i].data = tensor_address(x, b, t);
            continue;
        }
        bool all = head && t->segment == b->set->head_segment;
        for (uint32_t r = 0; r < t->runs; r++)
            if (all || (is_embedding && s->run_seen[r]))
                b->chunks[i][r] = memtier_ptr(x->opt.memtier, b->segs[t->segment + r]);
    }
}

static void refresh_adapters(const struct experts *x, struct expert_step *s)
{
    for (uint32_t k = 0; k < s->adapters_count; k++) {
        struct adapter *a = s->adapters[k];
        const char *now = memtier_ptr(x->opt.memtier, a->seg);
        if (a->address == now)
            continue;
        a->address = now;
        size_t count = (size_t)a->base->set->shape.layers *
                       rdu_program_slots(a->base->program, RDU_SECTION_LAYER);
        for (size_t i = 0; i < count; i++)
            if (a->a[i]) {
                a->deltas[i].a = now + a->a[i]->offset;
                a->deltas[i].b = now + a->b[i]->offset;
            }
    }
}

/* ---- running ------------------------------------------------------------------------------------------------- */

/* Stages that may run now: [stage, result). */
static uint32_t runnable(const struct expert_step *s)
{
    size_t ready = memtier_lease_ready(s->lease);
    if (ready < s->ready_for_embed)
        return 0;
    if (ready == s->segs_count)
        return s->stages;
    uint32_t layers = s->base->set->shape.layers;
    return 1 + (uint32_t)BASE_MIN(ready - s->ready_for_embed, layers);
}

static void refresh_stages(struct expert_step *s, uint32_t to)
{
    const struct experts *x = s->owner;
    uint32_t layers = s->base->set->shape.layers;
    for (uint32_t stage = s->stage; stage < to; stage++) {
        if (stage == 0) {
            refresh_globals(x, s->base, s, false);
            refresh_adapters(x, s);
        } else if (stage <= layers) {
            refresh_layer(x, s->base, stage - 1);
        } else {
            refresh_globals(x, s->base, s, true);
        }
    }
}

/* The head over `count` rows of score_outs, which belong to the tokens from `from` on of seq: each row says
 * how likely the token after it was. */
static void score_rows(struct expert_step *s, struct sequence *seq, size_t from, uint32_t count)
{
    const struct prompt_scores *sc = seq->scores;
    uint32_t head = s->base->set->shape.layers + 1, vocab = rdu_program_vocab(s->base->program);
    struct rdu_args args = s->args;
    args.outs = s->score_outs;
    args.n_outs = count;
    rdu_node_run(s->owner->opt.node, s->base->program, &args, head, head + 1);
    for (uint32_t i = 0; i < count; i++) {
        size_t at = from + i + 1;
        sample_logprobs(step_logits(s, i), vocab, seq->tokens[at], sc->top_count, &sc->logprob[at],
                        sc->top ? sc->top + at * sc->top_count : NULL);
    }
}

/* Hidden states of the whole step are there; logits have room for few rows: the head runs in pieces. */
static void score_prompts(struct expert_step *s)
{
    uint32_t first = 0, rows = logits_rows(s->owner);
    for (uint32_t i = 0; i < s->items_count; first += s->item_tokens[i] + s->drafts[i], i++) {
        struct sequence *seq = s->seq[i];
        size_t from = seq->run_count, to = BASE_MIN(from + s->item_tokens[i], seq->prompt_count - 1);
        if (seq->scores == NULL)
            continue;
        for (size_t at = from; at < to; at += rows) {
            uint32_t n = (uint32_t)BASE_MIN(to - at, rows);
            for (uint32_t k = 0; k < n; k++)
                s->score_outs[k] = first + (uint32_t)(at - from) + k;
            score_rows(s, seq, at, n);
        }
    }
}

static void run_stages(struct expert_step *s, uint32_t to)
{
    uint32_t head = s->base->set->shape.layers + 1;
    bool score = s->scored && to > head;
    uint32_t until = score ? head : to;
    if (until > s->stage)
        rdu_node_run(s->owner->opt.node, s->base->program, &s->args, s->stage, until);
    if (score)
        score_prompts(s);
    if (score && s->n_outs)
        rdu_node_run(s->owner->opt.node, s->base->program, &s->args, head, to);
}

/* What a prompt's token costs, from steps large enough to tell; of a layer's loads nothing is in it. */
static void note_speed(struct expert_step *s)
{
    if (s->n_tokens < 32 || s->stats.load_bytes > 0)
        return;
    double now = (double)s->stats.run_ns * 1e-9 / s->n_tokens, *mean = &s->owner->token_seconds;
    *mean = *mean > 0 ? 0.8 * *mean + 0.2 * now : now;
}

/* The next token of an item, and the ones after it as long as each is the one that was guessed: the row of a guess
 * is what it would be in a step of its own. */
static void sample_item(struct expert_step *s, uint32_t item, uint32_t vocab)
{
    struct sequence *seq = s->seq[item];
    uint32_t row = (uint32_t)s->out_of_item[item], accepted = 0, drafts = s->drafts[item];
    for (;; accepted++) {
        int32_t id = sample_token(seq, step_logits(s, row + accepted), vocab);
        seq->tokens[seq->tokens_count++] = id;
        bool end = tokenizer_is_eog(seq->expert->base->tokenizer, id);
        seq->ended = (end && !seq->sampling.ignore_eos) || seq->grammar_stuck;
        seq->hit_limit = sequence_generated(seq) >= seq->max_tokens;
        if (accepted == drafts || seq->draft[accepted] != id || seq->ended || seq->hit_limit)
            break;
    }
    seq->draft_count = 0;
    if (drafts == 0)
        return;
    sequence_advance(seq, accepted);
    sequence_note_draft(seq, drafts, accepted);
    s->stats.drafted += drafts;
    s->stats.accepted += accepted;
}

/* The step is through: tokens count as run, and sequences with nothing pending get their next token. */
static void finish(struct expert_step *s)
{
    uint32_t vocab = rdu_program_vocab(s->base->program);
    note_speed(s);
    for (uint32_t i = 0; i < s->items_count; i++) {
        struct sequence *seq = s->seq[i];
        sequence_advance(seq, s->item_tokens[i]);
        if (s->out_of_item[i] < 0 || s->eval)
            continue;
        if (sequence_generated(seq) >= seq->max_tokens) {
            seq->hit_limit = true; /* max_tokens 0: prefill only */
            continue;
        }
        seq->scratch = s->owner->scratch;
        sample_item(s, i, vocab);
    }
}

static void charge_node_time(struct expert_step *s)
{
    struct rdu_pass pass = {0};
    for (uint32_t i = 0; i < s->items_count; i++)
        node_time_item(&pass, s->item_tokens[i], s->seq[i]->run_count, s->out_of_item[i] >= 0);
    node_time_step(s->base, &pass, s->stats.load_bytes, &s->stats);
}

enum step_state expert_step_advance(struct expert_step *s, struct err *e)
{
    const struct experts *x = s->owner;
    memtier_poll(x->opt.memtier);
    if (!memtier_lease_ok(s->lease, e))
        return STEP_FAILED;
    uint32_t to = runnable(s);
    if (to > s->stage) {
        uint64_t start = clock_ns();
        refresh_stages(s, to);
        run_stages(s, to);
        s->stats.run_ns += clock_ns() - start;
        s->stage = to;
    }
    if (s->stage < s->stages)
        return STEP_BLOCKED;
    uint64_t ready_ns = memtier_lease_ready_ns(s->lease);
    s->stats.load_wait_ns = ready_ns > s->opened_ns ? ready_ns - s->opened_ns : 0;
    charge_node_time(s);
    finish(s);
    return STEP_DONE;
}

void expert_step_stats(const struct expert_step *s, struct step_stats *ret)
{
    *ret = s->stats;
}

uint64_t expert_step_missing_bytes(const struct expert_step *s)
{
    return memtier_lease_missing_bytes(s->lease);
}

void expert_step_close(struct expert_step **sp)
{
    struct expert_step *s = *sp;
    if (s == NULL)
        return;
    for (uint32_t i = 0; i < s->items_count; i++)
        s->seq[i]->busy = false;
    memtier_release(s->owner->opt.memtier, &s->lease);
    s->open = false;
    *sp = NULL;
}

const float *step_logits_of(const struct expert_step *s, const struct sequence *seq)
{
    for (uint32_t i = 0; i < s->items_count; i++)
        if (s->seq[i] == seq && s->out_of_item[i] >= 0)
            return step_logits(s, (uint32_t)s->out_of_item[i]);
    return NULL;
}

const float *step_logits(const struct expert_step *s, uint32_t out_idx)
{
    return s->owner->logits + out_idx * s->logits_stride;
}
