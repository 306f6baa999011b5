/* Pre-tokenizers: how a vocabulary of byte-level BPE cuts text into pieces before it merges. The
 * regexes of a family are applied in order, each one to every piece the one before left; a match is
 * a piece, and so is the text between two matches. A piece is its own subject: look-arounds and
 * anchors never see beyond it.
 *
 * The families are facts about published models. Two things differ from how they are written there:
 * - \s is spelled out. The models mean Unicode's White_Space; PCRE2's \s has U+180E on top.
 * - `\s+$` is `(?<!\s)\s++\z`. The same matches, but a run of n spaces in the middle of a text
 *   costs n steps and not n*n. */
#include "experts/text/tokenizer_priv.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define WS                                                                                         \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"    \
    "\\x{205f}\\x{3000}"
/* The tail that nearly all families share. Written with possessive repeats where the next thing
 * can never take back what was matched. */
#define SPACE_RUNS "[" WS "]+(?![^" WS "])|[" WS "]+"
#define LINE_RUNS "[" WS "]*[\\r\\n]+|" SPACE_RUNS

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" SPACE_RUNS
#define CONTRACTIONS "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
#define LLAMA3(numbers)                                                                            \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers "| ?[^" WS                              \
                 "\\p{L}\\p{N}]+[\\r\\n]*|" LINE_RUNS
#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define CJK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define SENTENCE " ?[^(" WS "|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+"

/* The letters of DeepSeek LLM: a list as its authors froze it, not a Unicode property. */
#define DEEPSEEK_LETTERS                                                                           \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-"        \
    "\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}"          \
    "\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}"         \
    "\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-"           \
    "\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}"        \
    "\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-"       \
    "\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-"         \
    "\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-"        \
    "\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}"        \
    "\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}"          \
    "\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-"        \
    "\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-"         \
    "\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"         \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-"       \
    "\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-"              \
    "\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-"         \
    "\\x{118df}\\x{1e900}-\\x{1e943}"

enum { REGEXES_MAX = 6 };
struct family {
    const char *names[16];
    const char *regexes[REGEXES_MAX];
    bool ignore_merges; /* a piece that is a token of its own is never merged from bytes */
    bool add_bos;       /* where the file does not say */
};

static const struct family families[] = {
    {.names = {"gpt-2", "phi-2", "roberta-bpe", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es",
               "jina-v2-de", "jina-v2-code", "gigachat", "mpt", "olmo", "jais"},
     .regexes = {GPT2}},
    {.names = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
     .regexes = {"\\p{N}", GPT2}},
    {.names = {"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"}, .regexes = {LLAMA3("\\p{N}")}},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3"},
     .regexes = {LLAMA3("\\p{N}{1,3}")},
     .ignore_merges = true,
     .add_bos = true},
    {.names = {"dbrx", "smaug-bpe", "chatglm-bpe"}, .regexes = {LLAMA3("\\p{N}{1,3}")}},
    {.names = {"deepseek-llm"},
     .regexes = {"[\\r\\n]", "[" WS "]?[" DEEPSEEK_LETTERS "]+",
                 "[" WS "]?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}"
                 "\\x{3000}-\\x{3002}]+",
                 "(?<![" WS "])[" WS "]++\\z", CJK, "\\p{N}+"}},
    {.names = {"deepseek-coder"},
     .regexes = {"[\\r\\n]", "[" WS "]?\\p{L}+", "[" WS "]?\\p{P}+", CJK, "\\p{N}"}},
    {.names = {"deepseek-v3"},
     .regexes = {"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{30ff}]+",
                 "[!-/:-@\\x{5b}-\\x{60}{-~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
                 " ?[\\p{P}\\p{S}]+[\\r\\n]*|" LINE_RUNS}},
    {.names = {"falcon"}, .regexes = {"[\\p{P}\\x{24}+<=>\\x{5e}~|`]+", GPT2, "[0-9][0-9][0-9]"}},
    {.names = {"tekken"},
     .regexes = {"[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+|"
                 "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]+[" LOWER "]*|\\p{N}|"
                 " ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|" LINE_RUNS},
     .ignore_merges = true,
     .add_bos = true},
    {.names = {"poro-chat", "bloom", "gpt3-finnish"}, .regexes = {SENTENCE}},
    {.names = {"viking"}, .regexes = {SENTENCE, "\\p{N}"}},
    {.names = {"default", ""},
     .regexes = {"[\\p{P}\\x{24}+<=>\\x{5e}~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

/* ---- open ------------------------------------------------------------------------------------ */

struct pretokenizer {
    const struct family *family;
    pcre2_code *codes[REGEXES_MAX];
    size_t count;
    bool jit;
};

static const struct family *find_family(const char *name, size_t len)
{
    for (size_t i = 0; i < BASE_COUNT(families); i++) {
        for (size_t k = 0; k < BASE_COUNT(families[i].names); k++) {
            const char *known = families[i].names[k];
            if (known != NULL && strlen(known) == len && memcmp(known, name, len) == 0)
                return &families[i];
        }
    }
    return NULL;
}

static enum err_code compile(const char *regex, pcre2_code **ret, struct err *e)
{
    int code;
    size_t offset;
    *ret = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code,
                         &offset, NULL);
    if (*ret == NULL) {
        PCRE2_UCHAR text[128] = "";
        (void)pcre2_get_error_message(code, text, sizeof(text));
        return err_set(e, ERR_INTERNAL, "pre-tokenizer regex at %zu: %s", offset,
                       (const char *)text);
    }
    return ERR_OK;
}

enum err_code pretokenizer_open(const char *name, size_t len, struct pretokenizer **ret,
                                struct err *e)
{
    const struct family *f = find_family(name, len);
    if (f == NULL)
        return err_set(e, ERR_UNSUPPORTED,
                       "tokenizer.ggml.pre names the pre-tokenizer \"%.*s\", which is not known "
                       "here; its text would be cut wrongly",
                       (int)BASE_MIN(len, (size_t)80), name);
    struct pretokenizer *p = mem_alloc(sizeof(*p));
    p->family = f;
    p->jit = true;
    for (size_t i = 0; i < REGEXES_MAX && f->regexes[i] != NULL; i++) {
        enum err_code rc = compile(f->regexes[i], &p->codes[i], e);
        if (rc != ERR_OK) {
            pretokenizer_close(&p);
            return rc;
        }
        p->count++;
        /* Where pages must not be executable, PCRE2 interprets: slower, the same pieces. */
        if (pcre2_jit_compile(p->codes[i], PCRE2_JIT_COMPLETE) != 0)
            p->jit = false;
    }
    *ret = p;
    return ERR_OK;
}

void pretokenizer_close(struct pretokenizer **p)
{
    if (*p == NULL)
        return;
    for (size_t i = 0; i < REGEXES_MAX; i++)
        pcre2_code_free((*p)->codes[i]);
    free(*p);
    *p = NULL;
}

bool pretokenizer_ignore_merges(const struct pretokenizer *p)
{
    return p->family->ignore_merges;
}

bool pretokenizer_add_bos(const struct pretokenizer *p)
{
    return p->family->add_bos;
}

/* ---- split ----------------------------------------------------------------------------------- */

/* One call's state: match data is not shared between threads. */
struct split {
    const struct pretokenizer *p;
    pcre2_match_data *match[REGEXES_MAX];
    pcre2_match_context *context; /* NULL until a match needs more stack than the default */
    pcre2_jit_stack *stack;
    void (*piece)(void *ctx, const char *piece, size_t len);
    void *ctx;
};

/* The machine stack's 32 KiB are enough for every regex above as PCRE2 10.42 compiles them; other
 * versions may push a frame per character of a run. */
static void grow_stack(struct split *s)
{
    s->context = pcre2_match_context_create(NULL);
    s->stack = pcre2_jit_stack_create(64 * BASE_KIB, 64 * BASE_MIB, NULL);
    if (s->context != NULL && s->stack != NULL)
        pcre2_jit_stack_assign(s->context, NULL, s->stack);
}

static int match_from(struct split *s, size_t regex_idx, const char *text, size_t len, size_t from)
{
    const pcre2_code *code = s->p->codes[regex_idx];
    pcre2_match_data *data = s->match[regex_idx];
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    if (!s->p->jit)
        return pcre2_match(code, subject, len, from, PCRE2_NO_UTF_CHECK, data, NULL);
    int rc = pcre2_jit_match(code, subject, len, from, 0, data, s->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && s->context == NULL) {
        grow_stack(s);
        rc = pcre2_jit_match(code, subject, len, from, 0, data, s->context);
    }
    return rc;
}

static enum err_code split_level(struct split *s, size_t regex_idx, const char *text, size_t len,
                                 struct err *e)
{
    if (len == 0)
        return ERR_OK;
    if (regex_idx == s->p->count) {
        s->piece(s->ctx, text, len);
        return ERR_OK;
    }
    const size_t *range = pcre2_get_ovector_pointer(s->match[regex_idx]);
    size_t pos = 0;
    while (pos < len) {
        int rc = match_from(s, regex_idx, text, len, pos);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return err_set(e, ERR_INTERNAL, "the pre-tokenizer's regex failed: PCRE2 error %d", rc);
        /* No regex above matches the empty string: every match moves on. */
        size_t from = range[0], to = range[1];
        enum err_code code = split_level(s, regex_idx + 1, text + pos, from - pos, e);
        if (code == ERR_OK)
            code = split_level(s, regex_idx + 1, text + from, to - from, e);
        if (code != ERR_OK)
            return code;
        pos = to;
    }
    return split_level(s, regex_idx + 1, text + pos, len - pos, e);
}

enum err_code pretokenizer_split(const struct pretokenizer *p, const char *text, size_t len,
                                 void (*piece)(void *ctx, const char *piece, size_t len), void *ctx,
                                 struct err *e)
{
    struct split s = {.p = p, .piece = piece, .ctx = ctx};
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < p->count && rc == ERR_OK; i++) {
        s.match[i] = pcre2_match_data_create(1, NULL);
        if (s.match[i] == NULL)
            rc = err_set(e, ERR_NO_MEMORY, "no memory for the pre-tokenizer");
    }
    if (rc == ERR_OK)
        rc = split_level(&s, 0, text, len, e);
    for (size_t i = 0; i < p->count; i++)
        pcre2_match_data_free(s.match[i]);
    pcre2_match_context_free(s.context);
    pcre2_jit_stack_free(s.stack);
    return rc;
}
