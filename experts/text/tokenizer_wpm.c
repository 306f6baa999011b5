/* WordPiece (BERT and its children): text is cleaned, lower-cased and stripped of accents, cut at
 * white space and punctuation, and each word is spelled from the left with the longest pieces the
 * vocabulary has; a word that can not be spelled is one unknown token. The normaliser is that of
 * BERT's uncased models (Devlin et al. 2018, tokenization.py), which is what GGUF's "bert" means.
 * In GGUF the pieces that begin a word carry U+2581 in front and the others nothing. */
#include "experts/text/text_utf8.h"
#include "experts/text/tokenizer_priv.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* A longer word is unknown, as in the original; it also bounds the work per word. */
enum { WORD_CHARS_MAX = 100 };

struct wpm {
    const struct vocab *vocab;
    int32_t unknown;
    uint32_t piece_bytes_max;
};

enum err_code wpm_open(const struct vocab *v, int32_t unknown_id, struct wpm **ret, struct err *e)
{
    if (unknown_id < 0)
        return err_set(e, ERR_CORRUPT,
                       "a bert vocabulary needs tokenizer.ggml.unknown_token_id, and has none");
    struct wpm *w = mem_alloc(sizeof(*w));
    w->vocab = v;
    w->unknown = unknown_id;
    for (int32_t id = 0; id < v->count; id++)
        w->piece_bytes_max = BASE_MAX(w->piece_bytes_max, v->tokens[id].text_len);
    *ret = w;
    return ERR_OK;
}

void wpm_close(struct wpm **w)
{
    free(*w);
    *w = NULL;
}

/* ---- normalise ------------------------------------------------------------------------------- */

/* Characters that vanish: controls (line ends and tabs are white space), formats, private ones. */
static bool is_dropped(uint32_t cp)
{
    if (cp == '\t' || cp == '\n' || cp == '\r')
        return false;
    if (cp == 0xFFFD)
        return true;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
        return true;
    default:
        return false;
    }
}

static bool is_punctuation(uint32_t cp)
{
    if (cp < 0x80)
        return cp > 0x20 && cp < 0x7F && !(cp >= '0' && cp <= '9') && !(cp >= 'A' && cp <= 'Z') &&
               !(cp >= 'a' && cp <= 'z');
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
        return true;
    default:
        return false;
    }
}

/* The blocks BERT calls Chinese characters: each one is a word. */
static bool is_cjk(uint32_t cp)
{
    return (cp >= 0x4E00 && cp <= 0x9FFF) || (cp >= 0x3400 && cp <= 0x4DBF) ||
           (cp >= 0x20000 && cp <= 0x2A6DF) || (cp >= 0x2A700 && cp <= 0x2B81F) ||
           (cp >= 0x2B920 && cp <= 0x2CEAF) || (cp >= 0xF900 && cp <= 0xFAFF) ||
           (cp >= 0x2F800 && cp <= 0x2FA1F);
}

static void append_cp(struct buf *out, uint32_t cp)
{
    char utf8[4];
    buf_append(out, utf8, utf8_encode(cp, utf8));
}

/* Cleaned text: white space is ' ', ideographs stand alone; still with accents and capitals. */
static void clean(const char *text, size_t len, struct buf *out)
{
    for (size_t pos = 0; pos < len;) {
        size_t step;
        uint32_t cp = text_utf8_get(text + pos, &step);
        if (is_dropped(cp)) {
            pos += step;
            continue;
        }
        if (text_is_space(cp)) {
            buf_append(out, " ", 1);
        } else if (is_cjk(cp)) {
            buf_append(out, " ", 1);
            buf_append(out, text + pos, step);
            buf_append(out, " ", 1);
        } else {
            buf_append(out, text + pos, step);
        }
        pos += step;
    }
}

/* Canonical decomposition without the marks, lower case. */
static enum err_code fold(const struct buf *in, struct buf *out, struct err *e)
{
    utf8proc_uint8_t *nfd = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)in->data, (utf8proc_ssize_t)in->len,
                                      &nfd, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
    if (n < 0)
        return err_set(e, ERR_INVALID, "the text can not be normalised: %s", utf8proc_errmsg(n));
    for (size_t pos = 0; pos < (size_t)n;) {
        size_t step;
        uint32_t cp = text_utf8_get((const char *)nfd + pos, &step);
        pos += step;
        if (utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_MN)
            continue;
        if (cp == 0x130) /* the one letter whose lower case is two characters: i + dot above */
            buf_append(out, "i\xCC\x87", 3);
        else
            append_cp(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
    }
    free(nfd);
    return ERR_OK;
}

/* ---- spell ----------------------------------------------------------------------------------- */

/* The longest piece at the start of `s`; its end must be the end of a character. */
static int32_t longest_piece(const struct wpm *w, const char *s, size_t len, size_t *ret_len)
{
    for (size_t n = BASE_MIN(len, (size_t)w->piece_bytes_max); n > 0; n--) {
        if (n < len && ((unsigned char)s[n] & 0xC0) == 0x80)
            continue;
        int32_t id = strmap_get(&w->vocab->by_text, s, n);
        if (id >= 0) {
            *ret_len = n;
            return id;
        }
    }
    return -1;
}

/* `word` begins with U+2581. */
static void spell(const struct wpm *w, const char *word, size_t len, struct token_list *ret)
{
    size_t count_before = ret->count;
    bool known = text_utf8_count(word, len) - 1 <= WORD_CHARS_MAX;
    for (size_t pos = 0; pos < len && known;) {
        size_t n = 0;
        int32_t id = longest_piece(w, word + pos, len - pos, &n);
        /* U+2581 alone is no start of a word: then nothing of the word itself was matched. */
        known = id >= 0 && !(pos == 0 && n <= 3);
        if (known)
            token_list_push(ret, id);
        pos += n;
    }
    if (!known) {
        ret->count = count_before;
        token_list_push(ret, w->unknown);
    }
}

static void flush(const struct wpm *w, struct buf *word, struct token_list *ret)
{
    if (word->len > 3)
        spell(w, word->data, word->len, ret);
    buf_clear(word);
    buf_append(word, "\xE2\x96\x81", 3);
}

static void spell_words(const struct wpm *w, const struct buf *text, struct token_list *ret)
{
    struct buf word = {0};
    buf_append(&word, "\xE2\x96\x81", 3);
    for (size_t pos = 0; pos < text->len;) {
        size_t step;
        uint32_t cp = text_utf8_get(text->data + pos, &step);
        bool alone = is_punctuation(cp);
        if (alone || cp == ' ')
            flush(w, &word, ret);
        if (cp != ' ')
            buf_append(&word, text->data + pos, step);
        if (alone)
            flush(w, &word, ret);
        pos += step;
    }
    flush(w, &word, ret);
    buf_done(&word);
}

enum err_code wpm_encode(const struct wpm *w, const char *text, size_t len, struct token_list *ret,
                         struct err *e)
{
    struct buf cleaned = {0}, folded = {0};
    clean(text, len, &cleaned);
    enum err_code rc = cleaned.len == 0 ? ERR_OK : fold(&cleaned, &folded, e);
    if (rc == ERR_OK && folded.len > 0)
        spell_words(w, &folded, ret);
    buf_done(&cleaned);
    buf_done(&folded);
    return rc;
}
