/* The tokenizer's public face: which model a GGUF names, the special tokens and flags around it,
 * and the cut of a text into special tokens and stretches for the model. */
#include "experts/text/text_utf8.h"
#include "experts/text/tokenizer_priv.h"

#include <stdlib.h>
#include <string.h>

struct tokenizer {
    enum token_kind kind;
    struct vocab vocab;
    struct special_trie *special;
    struct bpe *bpe; /* the one that `kind` says, the others NULL */
    struct spm *spm;
    struct wpm *wpm;
    int32_t bos, eos, unknown;
    bool add_bos;
    bool add_space_prefix;
    bool *is_eog;      /* [vocab] */
    bool *strip_after; /* [vocab] white space after the token belongs to it; NULL = none */
};

/* ---- open: ids and flags --------------------------------------------------------------------- */

static enum err_code read_id(const struct tokenizer *t, const struct gguf *g, const char *key,
                             int32_t *ret, struct err *e)
{
    if (!gguf_has(g, key))
        return ERR_OK;
    uint64_t id;
    enum err_code rc = gguf_get_u64(g, key, &id, e);
    if (rc != ERR_OK)
        return rc;
    /* Converters write 2^32-1 for "none". */
    if (id == UINT32_MAX) {
        *ret = -1;
        return ERR_OK;
    }
    if (id >= (uint64_t)t->vocab.count)
        return err_set(e, ERR_CORRUPT, "%s is %llu, but the vocabulary has %d tokens", key,
                       (unsigned long long)id, t->vocab.count);
    *ret = (int32_t)id;
    return ERR_OK;
}

static enum err_code read_flag(const struct gguf *g, const char *key, bool *ret, struct err *e)
{
    return gguf_has(g, key) ? gguf_get_bool(g, key, ret, e) : ERR_OK;
}

/* Texts that end a turn in some model family. Files often name one of them only, and models end
 * their answers with the others. */
static const char *const end_texts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<|end_of_text|>",
    "<|end_of_sentence|>",
    "<|return|>",
    "<|call|>",
    "<end_of_utterance>",
    "<|eot|>",
    "<|end_of_turn|>",
    "<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234>"};

static void mark_end(struct tokenizer *t, int32_t id)
{
    if (id >= 0)
        t->is_eog[id] = true;
}

static enum err_code read_ends(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    t->is_eog = mem_array((size_t)t->vocab.count, sizeof(*t->is_eog));
    mark_end(t, t->eos);
    static const char *const keys[] = {"tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < BASE_COUNT(keys); i++) {
        int32_t id = -1;
        enum err_code rc = read_id(t, g, keys[i], &id, e);
        if (rc != ERR_OK)
            return rc;
        mark_end(t, id);
    }
    for (size_t i = 0; i < BASE_COUNT(end_texts); i++) {
        int32_t id = strmap_get(&t->vocab.by_text, end_texts[i], strlen(end_texts[i]));
        if (id >= 0 && t->vocab.tokens[id].type != TOKEN_NORMAL)
            mark_end(t, id);
    }
    return ERR_OK;
}

/* What a model means by default, where its file is silent. */
static void set_defaults(struct tokenizer *t)
{
    t->bos = t->eos = t->unknown = -1;
    t->add_space_prefix = true;
    if (t->kind == TOKEN_KIND_SPM && t->vocab.count > 2) {
        t->unknown = 0; /* SentencePiece's order: <unk> <s> </s> */
        t->bos = 1;
        t->eos = 2;
    }
    t->add_bos = t->kind != TOKEN_KIND_BPE;
}

/* [CLS] and [SEP] are a BERT's first and last token, under names of their own; "seperator" is how
 * the format spells it. */
static enum err_code read_ids(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    const struct {
        const char *key;
        int32_t *ret;
    } ids[] = {{"tokenizer.ggml.unknown_token_id", &t->unknown},
               {"tokenizer.ggml.cls_token_id", &t->bos},
               {"tokenizer.ggml.seperator_token_id", &t->eos},
               {"tokenizer.ggml.bos_token_id", &t->bos},
               {"tokenizer.ggml.eos_token_id", &t->eos}};
    for (size_t i = 0; i < BASE_COUNT(ids); i++) {
        bool bert_only = i == 1 || i == 2;
        if (bert_only && t->kind != TOKEN_KIND_WPM)
            continue;
        enum err_code rc = read_id(t, g, ids[i].key, ids[i].ret, e);
        if (rc != ERR_OK)
            return rc;
    }
    return ERR_OK;
}

/* Phi-3's special tokens swallow the white space behind them (rstrip in its tokenizer.json), which
 * GGUF has no field for; the first three and <|endoftext|> do not. */
static void set_strip(struct tokenizer *t, const struct gguf *g)
{
    struct gguf_str arch = {.data = "", .len = 0};
    struct err ignored;
    if (!gguf_has(g, "general.architecture") || t->kind != TOKEN_KIND_SPM ||
        gguf_get_str(g, "general.architecture", &arch, &ignored) != ERR_OK)
        return;
    if (arch.len != 4 || memcmp(arch.data, "phi3", 4) != 0)
        return;
    t->strip_after = mem_array((size_t)t->vocab.count, sizeof(*t->strip_after));
    for (int32_t id = 2; id < t->vocab.count; id++) {
        const struct token *token = &t->vocab.tokens[id];
        bool special = token->type == TOKEN_CONTROL || token->type == TOKEN_USER;
        bool end = token->text_len == 13 && memcmp(token->text, "<|endoftext|>", 13) == 0;
        t->strip_after[id] = special && !end;
    }
}

static enum err_code open_model(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    switch (t->kind) {
    case TOKEN_KIND_BPE: {
        enum err_code rc = bpe_open(g, &t->vocab, &t->bpe, e);
        if (rc == ERR_OK)
            t->add_bos = bpe_add_bos(t->bpe);
        return rc;
    }
    case TOKEN_KIND_SPM:
        return spm_open(&t->vocab, t->unknown, &t->spm, e);
    case TOKEN_KIND_WPM:
        return wpm_open(&t->vocab, t->unknown, &t->wpm, e);
    }
    return ERR_OK;
}

static enum err_code open_all(struct tokenizer *t, const struct gguf *g, struct err *e)
{
    enum err_code rc = vocab_init(&t->vocab, g, t->kind, e);
    if (rc != ERR_OK)
        return rc;
    set_defaults(t);
    rc = read_ids(t, g, e);
    if (rc == ERR_OK)
        rc = open_model(t, g, e);
    if (rc == ERR_OK)
        rc = read_flag(g, "tokenizer.ggml.add_bos_token", &t->add_bos, e);
    if (rc == ERR_OK)
        rc = read_flag(g, "tokenizer.ggml.add_space_prefix", &t->add_space_prefix, e);
    if (rc == ERR_OK)
        rc = read_ends(t, g, e);
    if (rc != ERR_OK)
        return rc;
    t->add_bos = t->add_bos && t->bos >= 0;
    set_strip(t, g);
    t->special = special_trie_open(&t->vocab);
    return ERR_OK;
}

static bool str_is(struct gguf_str s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

enum err_code tokenizer_open(const struct gguf *g, struct tokenizer **ret, struct err *e)
{
    struct gguf_str model;
    if (!gguf_has(g, "tokenizer.ggml.model"))
        return err_set(e, ERR_CORRUPT, "the file has no tokenizer.ggml.model: no tokenizer");
    enum err_code rc = gguf_get_str(g, "tokenizer.ggml.model", &model, e);
    if (rc != ERR_OK)
        return rc;
    enum token_kind kind;
    if (str_is(model, "gpt2"))
        kind = TOKEN_KIND_BPE;
    else if (str_is(model, "llama"))
        kind = TOKEN_KIND_SPM;
    else if (str_is(model, "bert"))
        kind = TOKEN_KIND_WPM;
    else
        return err_set(e, ERR_UNSUPPORTED,
                       "tokenizer.ggml.model is \"%.*s\"; known here are gpt2 (byte-level BPE), "
                       "llama (SentencePiece) and bert (WordPiece)",
                       (int)BASE_MIN(model.len, (size_t)80), model.data);
    struct tokenizer *t = mem_alloc(sizeof(*t));
    t->kind = kind;
    rc = open_all(t, g, e);
    if (rc != ERR_OK) {
        tokenizer_close(&t);
        return rc;
    }
    *ret = t;
    return ERR_OK;
}

void tokenizer_close(struct tokenizer **t)
{
    if (*t == NULL)
        return;
    bpe_close(&(*t)->bpe);
    spm_close(&(*t)->spm);
    wpm_close(&(*t)->wpm);
    special_trie_close(&(*t)->special);
    vocab_done(&(*t)->vocab);
    free((*t)->is_eog);
    free((*t)->strip_after);
    free(*t);
    *t = NULL;
}

/* ---- encode ---------------------------------------------------------------------------------- */

void token_list_push(struct token_list *l, int32_t id)
{
    if (l->count == l->cap) {
        l->cap = l->cap == 0 ? 64 : l->cap * 2;
        l->ids = mem_grow(l->ids, l->cap, sizeof(*l->ids));
    }
    l->ids[l->count++] = id;
}

/* `at_edge`: the stretch follows a special token or the start of the text, where SentencePiece
 * models expect a space in front of a word. */
static enum err_code encode_stretch(const struct tokenizer *t, const char *text, size_t len,
                                    bool at_edge, struct token_list *ret, struct err *e)
{
    if (len == 0)
        return ERR_OK;
    switch (t->kind) {
    case TOKEN_KIND_BPE:
        return bpe_encode(t->bpe, text, len, ret, e);
    case TOKEN_KIND_SPM:
        spm_encode(t->spm, text, len, at_edge && t->add_space_prefix, ret);
        return ERR_OK;
    case TOKEN_KIND_WPM:
        return wpm_encode(t->wpm, text, len, ret, e);
    }
    return ERR_OK;
}

static size_t skip_space(const char *text, size_t len, size_t pos)
{
    while (pos < len) {
        size_t step;
        if (!text_is_space(text_utf8_get(text + pos, &step)))
            break;
        pos += step;
    }
    return pos;
}

static enum err_code encode_valid(const struct tokenizer *t, const char *text, size_t len,
                                  bool parse_special, struct token_list *ret, struct err *e)
{
    size_t pos = 0, at, n;
    int32_t id = -1;
    bool at_edge = true;
    while (special_trie_find(t->special, text, len, pos, parse_special, &at, &n, &id)) {
        enum err_code rc = encode_stretch(t, text + pos, at - pos, at_edge, ret, e);
        if (rc != ERR_OK)
            return rc;
        token_list_push(ret, id);
        pos = at + n;
        if (t->strip_after != NULL && t->strip_after[id])
            pos = skip_space(text, len, pos);
        at_edge = true;
    }
    return encode_stretch(t, text + pos, len - pos, at_edge, ret, e);
}

enum err_code tokenizer_encode(const struct tokenizer *t, const char *text, size_t len,
                               bool parse_special, struct token_list *ret, struct err *e)
{
    /* The models count bytes in 32 bits; SentencePiece makes three of a space. */
    if (len > INT32_MAX / 4)
        return err_set(e, ERR_TOO_LARGE, "a text of %zu bytes is too long to tokenise", len);
    if (utf8_valid(text, len))
        return encode_valid(t, text, len, parse_special, ret, e);
    struct buf repaired = {0};
    text_utf8_sanitize(text, len, &repaired);
    enum err_code rc = encode_valid(t, repaired.data, repaired.len, parse_special, ret, e);
    buf_done(&repaired);
    return rc;
}

/* ---- the vocabulary -------------------------------------------------------------------------- */

static const struct token *token_at(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab.count ? &t->vocab.tokens[id] : NULL;
}

const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, bool special,
                                  size_t *ret_len)
{
    const struct token *token = token_at(t, id);
    if (token == NULL)
        return NULL;
    bool hidden = token->type == TOKEN_CONTROL || token->type == TOKEN_UNKNOWN;
    *ret_len = hidden && !special ? 0 : token->bytes_len;
    return token->bytes;
}

int32_t tokenizer_vocab(const struct tokenizer *t)
{
    return t->vocab.count;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_add_bos(const struct tokenizer *t)
{
    return t->add_bos;
}

bool tokenizer_is_eog(const struct tokenizer *t, int32_t id)
{
    return token_at(t, id) != NULL && t->is_eog[id];
}

bool tokenizer_is_control(const struct tokenizer *t, int32_t id)
{
    const struct token *token = token_at(t, id);
    return token != NULL && token->type == TOKEN_CONTROL;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *text, size_t len)
{
    return strmap_get(&t->vocab.by_text, text, len);
}
