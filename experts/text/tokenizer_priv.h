/* What the files of the tokenizer share. A vocabulary is read once from the GGUF header into flat
 * arrays; the three models (byte-level BPE, SentencePiece BPE, WordPiece) add their own tables and
 * encode one stretch of text that holds no special token. Everything is immutable after open. */
#ifndef SWITCHYARD_EXPERTS_TOKENIZER_PRIV_H
#define SWITCHYARD_EXPERTS_TOKENIZER_PRIV_H

#include "experts/experts.h"

/* The values of tokenizer.ggml.token_type. */
enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

/* Text as the vocabulary spells it, and the bytes it stands for in decoded text. */
struct token {
    const char *text, *bytes;
    uint32_t text_len, bytes_len;
    float score;
    uint8_t type;
};

/* Strings of at most 65535 bytes -> int32, open addressing. The keys are not copied. */
struct strmap {
    struct strmap_slot *slots;
    size_t mask, count;
};
void strmap_init(struct strmap *m, size_t count_expected);
void strmap_done(struct strmap *m);
void strmap_put(struct strmap *m, const char *key, size_t len, int32_t value); /* last one wins */
int32_t strmap_get(const struct strmap *m, const char *key, size_t len);       /* -1 = absent */

struct vocab {
    struct token *tokens;
    int32_t count;
    struct strmap by_text;
    char *pool; /* the strings of all tokens */
};
/* Read tokens, types and scores; the byte forms are those of model `kind`. */
enum token_kind { TOKEN_KIND_BPE, TOKEN_KIND_SPM, TOKEN_KIND_WPM };
enum err_code vocab_init(struct vocab *v, const struct gguf *g, enum token_kind kind,
                         struct err *e) BASE_NODISCARD;
void vocab_done(struct vocab *v);

/* ---- special tokens in the text -------------------------------------------------------------- */

/* A byte trie over the texts that are matched before the model sees the text. */
struct special_trie;
struct special_trie *special_trie_open(const struct vocab *v);
void special_trie_close(struct special_trie **t);
/* First match at or after `from`; the longest one there. False = none. User-defined tokens always
 * match, control and unknown ones only with `parse_special`. */
bool special_trie_find(const struct special_trie *t, const char *text, size_t len, size_t from,
                       bool parse_special, size_t *ret_pos, size_t *ret_len, int32_t *ret_id);

/* ---- pre-tokenizer --------------------------------------------------------------------------- */

/* Which regexes tokenizer.ggml.pre names, compiled. */
struct pretokenizer;
enum err_code pretokenizer_open(const char *name, size_t len, struct pretokenizer **ret,
                                struct err *e) BASE_NODISCARD;
void pretokenizer_close(struct pretokenizer **p);
bool pretokenizer_ignore_merges(const struct pretokenizer *p);
bool pretokenizer_add_bos(const struct pretokenizer *p);
/* Calls `piece` for every piece of `text` (valid UTF-8), in order. */
enum err_code pretokenizer_split(const struct pretokenizer *p, const char *text, size_t len,
                                 void (*piece)(void *ctx, const char *piece, size_t len), void *ctx,
                                 struct err *e) BASE_NODISCARD;

/* ---- the models ------------------------------------------------------------------------------ */

void token_list_push(struct token_list *l, int32_t id);

/* Byte-level BPE by merge ranks. */
struct bpe;
enum err_code bpe_open(const struct gguf *g, const struct vocab *v, struct bpe **ret,
                       struct err *e) BASE_NODISCARD;
void bpe_close(struct bpe **b);
bool bpe_add_bos(const struct bpe *b);
enum err_code bpe_encode(const struct bpe *b, const char *text, size_t len, struct token_list *ret,
                         struct err *e) BASE_NODISCARD;
/* The bytes a byte-level token stands for, into `out` [len]; returns how many. */
size_t bpe_decode_text(const char *text, size_t len, char *out);

/* SentencePiece BPE by scores, with byte fallback. */
struct spm;
enum err_code spm_open(const struct vocab *v, int32_t unknown_id, struct spm **ret,
                       struct err *e) BASE_NODISCARD;
void spm_close(struct spm **s);
/* `prefix`: put one space in front. */
void spm_encode(const struct spm *s, const char *text, size_t len, bool prefix,
                struct token_list *ret);

/* WordPiece with BERT's normaliser. */
struct wpm;
enum err_code wpm_open(const struct vocab *v, int32_t unknown_id, struct wpm **ret,
                       struct err *e) BASE_NODISCARD;
void wpm_close(struct wpm **w);
enum err_code wpm_encode(const struct wpm *w, const char *text, size_t len, struct token_list *ret,
                         struct err *e) BASE_NODISCARD;

#endif
