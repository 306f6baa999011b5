/* Sequences: the tokens of one generation, its KV pages, its sampler state. All pages for prompt and answer
 * are taken when the sequence opens, so a running one can never starve in the middle: overload shows as a
 * request that waits, not as one that dies. */
#include <stdlib.h>
#include <string.h>

#include "experts/grammar.h"
#include "experts/serve.h"

static size_t page_bytes_of(const struct experts *x, const struct expert *ex)
{
    uint32_t kv_heads, head_dim;
    rdu_program_kv(ex->base->program, &kv_heads, &head_dim);
    enum rdu_kv_type type = x->opt.kv_type == EXPERT_KV_F16 ? RDU_KV_F16 : RDU_KV_F32;
    return rdu_kv_page_bytes(type, ex->base->set->shape.layers, kv_heads, head_dim, x->opt.kv_page_tokens);
}

/* All pages or none. */
static enum err_code take_pages(struct sequence *s, uint32_t count, struct err *e)
{
    struct memtier *m = s->owner->opt.memtier;
    s->pages = mem_array(BASE_MAX(count, 1), sizeof(*s->pages));
    for (; s->pages_count < count; s->pages_count++) {
        s->pages[s->pages_count] = memtier_page_alloc(m, s->page_bytes);
        if (s->pages[s->pages_count] == NULL)
            return err_set(e, ERR_BUSY, "no room for %u KV pages of %zu bytes now", count, s->page_bytes);
    }
    return ERR_OK;
}

static uint32_t pages_for(const struct experts *x, size_t tokens)
{
    return (uint32_t)((tokens + x->opt.kv_page_tokens - 1) / x->opt.kv_page_tokens);
}

uint64_t experts_kv_bytes(const struct experts *x, const struct expert *ex, size_t tokens)
{
    return pages_for(x, tokens) * memtier_footprint(page_bytes_of(x, ex));
}

enum err_code experts_check_fit(const struct experts *x, const struct expert *ex, size_t prompt_tokens,
                                uint32_t max_tokens, struct err *e)
{
    struct memtier_stats st;
    if (prompt_tokens == 0)
        return err_set(e, ERR_INVALID, "the prompt has no tokens");
    size_t need = prompt_tokens + max_tokens;
    if (need > expert_context(ex))
        return err_set(e, ERR_CONTEXT, "%zu prompt tokens and %u more exceed the context of %u tokens",
                       prompt_tokens, max_tokens, expert_context(ex));
    uint64_t kv = experts_kv_bytes(x, ex, need);
    memtier_stats(x->opt.memtier, &st);
    if (kv + expert_footprint(ex) <= st.hbm_budget)
        return ERR_OK;
    return err_set(e, ERR_NO_MEMORY,
                   "%llu bytes of KV cache and %llu of weights exceed tiers.hbm of %llu bytes; ask for fewer "
                   "tokens or raise the budget",
                   (unsigned long long)kv, (unsigned long long)expert_footprint(ex),
                   (unsigned long long)st.hbm_budget);
}

/* The trie of a vocabulary takes about as long as a few tokens do: it is made for the first who needs it. */
static void constrain(struct sequence *s, const struct grammar *grammar)
{
    struct base *base = s->expert->base;
    if (base->vocab_trie == NULL)
        base->vocab_trie = grammar_vocab_open(base->tokenizer);
    s->grammar = grammar_state_open(grammar, base->vocab_trie);
}

enum err_code sequence_open(struct experts *x, const struct sequence_options *opt, struct sequence **ret,
                            struct err *e)
{
    if (!expert_ok(opt->expert, e))
        return e ? e->code : ERR_INTERNAL;
    size_t need = opt->tokens_count + opt->max_tokens;
    enum err_code code = experts_check_fit(x, opt->expert, opt->tokens_count, opt->max_tokens, e);
    if (code != ERR_OK)
        return code;
    int32_t vocab = tokenizer_vocab(opt->expert->base->tokenizer);
    for (size_t i = 0; i < opt->tokens_count; i++)
        if (opt->tokens[i] < 0 || opt->tokens[i] >= vocab)
            return err_set(e, ERR_INVALID, "token %zu is %d: the vocabulary has %d", i, opt->tokens[i], vocab);

    struct sequence *s = mem_alloc(sizeof(*s));
    s->owner = x;
    s->expert = opt->expert;
    s->page_bytes = page_bytes_of(x, opt->expert);
    s->max_tokens = opt->max_tokens;
    s->logprobs = opt->logprobs;
    s->scores = opt->scores;
    s->tokens = mem_array(need + 1, sizeof(*s->tokens));
    memcpy(s->tokens, opt->tokens, opt->tokens_count * sizeof(*s->tokens));
    s->tokens_count = s->prompt_count = opt->tokens_count;
    s->sampling = opt->sampling;
    if (opt->sampling.bias_count) {
        struct logit_bias *bias = mem_array(opt->sampling.bias_count, sizeof(*bias));
        memcpy(bias, opt->sampling.bias, opt->sampling.bias_count * sizeof(*bias));
        s->sampling.bias = bias;
    }
    rng_init(&s->rng, opt->sampling.seed);
    if (opt->grammar != NULL)
        constrain(s, opt->grammar);
    code = take_pages(s, pages_for(x, need), e);
    if (code != ERR_OK) {
        sequence_close(&s);
        return code;
    }
    *ret = s;
    return ERR_OK;
}

void sequence_close(struct sequence **sp)
{
    struct sequence *s = *sp;
    if (s == NULL)
        return;
    for (uint32_t i = 0; i < s->pages_count; i++)
        memtier_page_free(s->owner->opt.memtier, s->pages[i], s->page_bytes);
    if (s->sampling.bias_count)
        free((void *)s->sampling.bias);
    grammar_state_close(&s->grammar);
    free(s->pages);
    free(s->tokens);
    free(s);
    *sp = NULL;
}

struct expert *sequence_expert(const struct sequence *s)
{
    return s->expert;
}

size_t sequence_tokens(const struct sequence *s)
{
    return s->tokens_count;
}

size_t sequence_pending(const struct sequence *s)
{
    return s->tokens_count - s->run_count;
}

size_t sequence_generated(const struct sequence *s)
{
    return s->tokens_count - s->prompt_count;
}

int32_t sequence_last_token(const struct sequence *s)
{
    return s->tokens[s->tokens_count - 1];
}

bool sequence_done(const struct sequence *s, bool *ret_hit_limit)
{
    if (ret_hit_limit)
        *ret_hit_limit = s->hit_limit && !s->ended;
    return s->ended || s->hit_limit;
}

size_t sequence_logprobs(const struct sequence *s, float *ret_chosen, struct token_logprob *ret_top,
                         size_t cap)
{
    size_t n = BASE_MIN((size_t)s->top_count, cap);
    *ret_chosen = s->chosen_logprob;
    memcpy(ret_top, s->top, n * sizeof(*ret_top));
    return n;
}
