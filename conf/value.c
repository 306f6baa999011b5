/* One value of one key: parsed, checked, printed, copied and freed as its row of the table says. */
#include "conf/schema.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *field(const struct conf_key *key, void *base)
{
    return (char *)base + key->at;
}

static const void *field_const(const struct conf_key *key, const void *base)
{
    return (const char *)base + key->at;
}

static size_t *list_count(const struct conf_key *key, void *base)
{
    return (size_t *)((char *)base + key->count_at);
}

static size_t list_count_const(const struct conf_key *key, const void *base)
{
    return *(const size_t *)((const char *)base + key->count_at);
}

/* ---- words of "a|b|c" ---- */

/* Position of `word` among the choices, -1 if it is none. */
static int choice_index(const char *choices, const char *word)
{
    size_t word_len = strlen(word);
    int index = 0;
    for (const char *p = choices;; index++) {
        size_t len = strcspn(p, "|");
        if (len == word_len && memcmp(p, word, len) == 0)
            return index;
        if (p[len] == '\0')
            return -1;
        p += len + 1;
    }
}

static void choice_name(const char *choices, unsigned index, struct buf *out)
{
    const char *p = choices;
    for (unsigned i = 0; i < index && p[strcspn(p, "|")] != '\0'; i++)
        p += strcspn(p, "|") + 1;
    buf_append(out, p, strcspn(p, "|"));
}

/* "a, b or c" into a small buffer, for messages. */
static const char *choices_text(const char *choices, char *buf, size_t cap)
{
    size_t len = 0;
    buf[0] = '\0';
    for (const char *p = choices; len < cap;) {
        size_t word = strcspn(p, "|");
        bool last = p[word] == '\0', first = p == choices;
        int n = snprintf(buf + len, cap - len, "%s%.*s",
                         first  ? ""
                         : last ? " or "
                                : ", ",
                         (int)word, p);
        len += n > 0 ? (size_t)n : 0;
        if (last)
            break;
        p += word + 1;
    }
    return buf;
}

static enum err_code check_choice(const struct conf_key *key, const char *shown, const char *word,
                                  struct err *e)
{
    char text[160];
    if (key->choices == NULL || choice_index(key->choices, word) >= 0)
        return ERR_OK;
    return err_set_param(e, ERR_INVALID, shown, "%s: '%.64s' is not a choice: use %s", shown, word,
                         choices_text(key->choices, text, sizeof(text)));
}

/* ---- parsing ---- */

static enum err_code check_range(const struct conf_key *key, const char *shown, const char *text,
                                 double v, struct err *e)
{
    if (v >= key->min && v <= key->max)
        return ERR_OK;
    char lo[32], hi[32];
    if (key->kind == CONF_KIND_BYTES) {
        (void)size_format((uint64_t)key->min, lo, sizeof(lo));
        (void)size_format((uint64_t)key->max, hi, sizeof(hi));
    } else {
        (void)snprintf(lo, sizeof(lo), "%.15g", key->min);
        (void)snprintf(hi, sizeof(hi), "%.15g", key->max);
    }
    return err_set_param(e, ERR_INVALID, shown, "%s: %.64s is out of bounds: %s to %s are allowed",
                         shown, text, lo, hi);
}

static enum err_code parse_integer(const struct conf_key *key, const char *shown, const char *text,
                                   int64_t *ret, struct err *e)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end != '\0')
        return err_set_param(e, ERR_INVALID, shown, "%s: '%.64s' is not a whole number", shown,
                             text);
    /* Beyond 64 bits strtoll clamps, and the clamped value is beyond every bound of the table. */
    enum err_code rc = check_range(key, shown, text, (double)v, e);
    if (rc == ERR_OK)
        *ret = v;
    return rc;
}

static enum err_code parse_number(const struct conf_key *key, const char *shown, const char *text,
                                  double *ret, struct err *e)
{
    /* Decimal only: strtod alone would take hex, "nan" and "inf" as well. */
    char *end = NULL;
    double v = 0;
    if (text[0] != '\0' && text[strspn(text, "0123456789+-.eE")] == '\0')
        v = strtod(text, &end);
    if (end == NULL || end == text || *end != '\0')
        return err_set_param(e, ERR_INVALID, shown, "%s: '%.64s' is not a number", shown, text);
    enum err_code rc = check_range(key, shown, text, v, e);
    if (rc == ERR_OK)
        *ret = v;
    return rc;
}

static enum err_code parse_bytes(const struct conf_key *key, const char *shown, const char *text,
                                 uint64_t *ret, struct err *e)
{
    uint64_t v;
    struct err cause;
    if (size_parse(text, &v, &cause) != ERR_OK)
        return err_set_param(e, ERR_INVALID, shown, "%s: %s", shown, cause.msg);
    enum err_code rc = check_range(key, shown, text, (double)v, e);
    if (rc == ERR_OK)
        *ret = v;
    return rc;
}

static enum err_code parse_bool(const char *shown, const char *text, bool *ret, struct err *e)
{
    /* The words of YAML 1.1, because people write them. */
    static const char yes[] = "true|yes|on", no[] = "false|no|off";
    bool is_yes = choice_index(yes, text) >= 0;
    if (!is_yes && choice_index(no, text) < 0)
        return err_set_param(e, ERR_INVALID, shown, "%s: '%.64s' is neither true nor false", shown,
                             text);
    *ret = is_yes;
    return ERR_OK;
}

/* Control characters have no place in names, addresses and paths; descriptions may have lines. */
static enum err_code check_text(const char *shown, const char *text, struct err *e)
{
    if (!utf8_valid(text, strlen(text)))
        return err_set_param(e, ERR_INVALID, shown, "%s: the text is not valid UTF-8", shown);
    for (const char *p = text; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;
        if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
            return err_set_param(e, ERR_INVALID, shown,
                                 "%s: the text has a control character (0x%02x)", shown, c);
    }
    return ERR_OK;
}

static char *expand_path(const char *text, const char *dir)
{
    const char *home = getenv("HOME");
    if (text[0] == '~' && text[1] == '/' && home != NULL)
        return mem_format("%s%s", home, text + 1);
    if (text[0] != '/' && text[0] != '\0' && dir != NULL)
        return mem_format("%s/%s", dir, text);
    return mem_strdup(text);
}

static enum err_code set_text(const struct conf_key *key, void *base, const char *shown,
                              const char *text, const char *dir, struct err *e)
{
    enum err_code rc = check_text(shown, text, e);
    if (rc == ERR_OK)
        rc = check_choice(key, shown, text, e);
    if (rc != ERR_OK)
        return rc;
    char **p = field(key, base);
    char *copy = key->kind == CONF_KIND_PATH ? expand_path(text, dir) : mem_strdup(text);
    free(*p);
    *p = copy;
    return ERR_OK;
}

static enum err_code set_comma_list(const struct conf_key *key, void *base, const char *shown,
                                    const char *text, struct err *e)
{
    char *copy = mem_strdup(text), **items = NULL;
    size_t count = 0;
    for (char *p = copy, *word; (word = strsep(&p, ",")) != NULL;) {
        word += strspn(word, " \t");
        size_t len = strlen(word);
        while (len > 0 && (word[len - 1] == ' ' || word[len - 1] == '\t'))
            word[--len] = '\0';
        if (len == 0)
            continue; /* "a,,b", a trailing comma, and the empty text that empties the list */
        items = mem_grow(items, count + 1, sizeof(*items));
        items[count++] = word;
    }
    enum err_code rc = conf_value_set_list(key, base, shown, items, count, e);
    free(items);
    free(copy);
    return rc;
}

static enum err_code set_integer(const struct conf_key *key, void *base, const char *shown,
                                 const char *text, struct err *e)
{
    int64_t v = 0;
    enum err_code rc = parse_integer(key, shown, text, &v, e);
    if (rc != ERR_OK)
        return rc;
    void *p = field(key, base);
    if (key->kind == CONF_KIND_UINT16)
        *(uint16_t *)p = (uint16_t)v;
    else if (key->kind == CONF_KIND_UINT32)
        *(uint32_t *)p = (uint32_t)v;
    else if (key->kind == CONF_KIND_INT32)
        *(int32_t *)p = (int32_t)v;
    else
        *(int64_t *)p = v;
    return ERR_OK;
}

enum err_code conf_value_set(const struct conf_key *key, void *base, const char *shown,
                             const char *text, const char *dir, struct err *e)
{
    switch (key->kind) {
    case CONF_KIND_BOOL:
        return parse_bool(shown, text, field(key, base), e);
    case CONF_KIND_UINT16:
    case CONF_KIND_UINT32:
    case CONF_KIND_INT32:
    case CONF_KIND_INT64:
        return set_integer(key, base, shown, text, e);
    case CONF_KIND_BYTES:
        return parse_bytes(key, shown, text, field(key, base), e);
    case CONF_KIND_NUMBER:
        return parse_number(key, shown, text, field(key, base), e);
    case CONF_KIND_TEXT:
    case CONF_KIND_PATH:
        return set_text(key, base, shown, text, dir, e);
    case CONF_KIND_CHOICE: {
        enum err_code rc = check_choice(key, shown, text, e);
        if (rc == ERR_OK)
            *(unsigned *)field(key, base) = (unsigned)choice_index(key->choices, text);
        return rc;
    }
    case CONF_KIND_LIST:
        return set_comma_list(key, base, shown, text, e);
    }
    return err_set_param(e, ERR_INTERNAL, shown, "%s: the key has no kind", shown);
}

enum err_code conf_value_set_list(const struct conf_key *key, void *base, const char *shown,
                                  char *const *items, size_t count, struct err *e)
{
    for (size_t i = 0; i < count; i++) {
        enum err_code rc = check_text(shown, items[i], e);
        if (rc == ERR_OK)
            rc = check_choice(key, shown, items[i], e);
        if (rc != ERR_OK)
            return rc;
    }
    char **copy = count > 0 ? mem_array(count, sizeof(*copy)) : NULL;
    for (size_t i = 0; i < count; i++)
        copy[i] = mem_strdup(items[i]);
    conf_value_done(key, base);
    *(char ***)field(key, base) = copy;
    *list_count(key, base) = count;
    return ERR_OK;
}

/* ---- life ---- */

static char *default_store_path(void)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (data != NULL && data[0] == '/')
        return mem_format("%s/switchyard/store", data);
    if (home != NULL && home[0] == '/')
        return mem_format("%s/.local/share/switchyard/store", home);
    return mem_strdup("/var/lib/switchyard/store");
}

void conf_value_init(const struct conf_key *key, void *base)
{
    bool unset = key->default_text[0] == '\0';
    switch (key->kind) {
    case CONF_KIND_TEXT:
    case CONF_KIND_PATH:
        /* The one default that depends on where we run. */
        *(char **)field(key, base) =
            key->default_text[0] == '$' ? default_store_path() : mem_strdup(key->default_text);
        return;
    case CONF_KIND_LIST:
        *(char ***)field(key, base) = NULL;
        *list_count(key, base) = 0;
        break;
    case CONF_KIND_NUMBER:
        *(double *)field(key, base) = (double)NAN;
        break;
    case CONF_KIND_INT64:
        *(int64_t *)field(key, base) = -1;
        break;
    case CONF_KIND_BOOL:
    case CONF_KIND_UINT16:
    case CONF_KIND_UINT32:
    case CONF_KIND_INT32:
    case CONF_KIND_BYTES:
    case CONF_KIND_CHOICE:
        break;
    }
    struct err e;
    if (!unset && conf_value_set(key, base, key->name, key->default_text, NULL, &e) != ERR_OK) {
        /* The table contradicts itself; a test walks every row. */
        (void)fprintf(stderr, "switchyard: default of %s\n", e.msg);
        abort();
    }
}

void conf_value_copy(const struct conf_key *key, void *dst, const void *src)
{
    static const size_t plain_bytes[] = {
        [CONF_KIND_BOOL] = sizeof(bool),       [CONF_KIND_UINT16] = sizeof(uint16_t),
        [CONF_KIND_UINT32] = sizeof(uint32_t), [CONF_KIND_INT32] = sizeof(int32_t),
        [CONF_KIND_INT64] = sizeof(int64_t),   [CONF_KIND_BYTES] = sizeof(uint64_t),
        [CONF_KIND_NUMBER] = sizeof(double),   [CONF_KIND_CHOICE] = sizeof(unsigned),
    };
    const void *from = field_const(key, src);
    void *to = field(key, dst);
    if (key->kind == CONF_KIND_TEXT || key->kind == CONF_KIND_PATH) {
        *(char **)to = mem_strdup(*(char *const *)from);
    } else if (key->kind == CONF_KIND_LIST) {
        size_t count = list_count_const(key, src);
        char *const *items = *(char *const *const *)from;
        char **copy = count > 0 ? mem_array(count, sizeof(*copy)) : NULL;
        for (size_t i = 0; i < count; i++)
            copy[i] = mem_strdup(items[i]);
        *(char ***)to = copy;
        *list_count(key, dst) = count;
    } else {
        memcpy(to, from, plain_bytes[key->kind]);
    }
}

void conf_value_done(const struct conf_key *key, void *base)
{
    if (key->kind == CONF_KIND_TEXT || key->kind == CONF_KIND_PATH) {
        char **p = field(key, base);
        free(*p);
        *p = NULL;
    } else if (key->kind == CONF_KIND_LIST) {
        char ***p = field(key, base);
        for (size_t i = 0; i < *list_count(key, base); i++)
            free((*p)[i]);
        free(*p);
        *p = NULL;
        *list_count(key, base) = 0;
    }
}

bool conf_value_is_unset(const struct conf_key *key, const void *base)
{
    const void *p = field_const(key, base);
    switch (key->kind) {
    case CONF_KIND_TEXT:
    case CONF_KIND_PATH:
        return (*(char *const *)p)[0] == '\0';
    case CONF_KIND_LIST:
        return list_count_const(key, base) == 0;
    case CONF_KIND_NUMBER:
        return isnan(*(const double *)p) != 0;
    case CONF_KIND_INT64:
        return *(const int64_t *)p < 0;
    default:
        return false;
    }
}

/* ---- printing ---- */

/* A JSON string, which is a YAML double-quoted scalar as well. */
static void format_text(const char *text, struct buf *out)
{
    buf_puts(out, "\"");
    for (const char *p = text; *p != '\0'; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\')
            buf_printf(out, "\\%c", c);
        else if (c == '\n')
            buf_puts(out, "\\n");
        else if (c == '\t')
            buf_puts(out, "\\t");
        else if (c < 0x20 || c == 0x7f)
            buf_printf(out, "\\u%04x", c);
        else
            buf_append(out, p, 1);
    }
    buf_puts(out, "\"");
}

/* Exact: the largest unit that divides it. */
static void format_bytes(uint64_t bytes, bool json, struct buf *out)
{
    static const char *const units[] = {"", "KiB", "MiB", "GiB", "TiB"};
    unsigned unit = 0;
    while (!json && bytes != 0 && bytes % 1024 == 0 && unit + 1 < BASE_COUNT(units)) {
        bytes /= 1024;
        unit++;
    }
    buf_printf(out, "%llu%s", (unsigned long long)bytes, units[unit]);
}

/* The shortest text that reads back as the same double. */
static void format_number(double v, struct buf *out)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        (void)snprintf(text, sizeof(text), "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    buf_puts(out, text);
}

static void format_list(const struct conf_key *key, const void *base, struct buf *out)
{
    char *const *items = *(char *const *const *)field_const(key, base);
    buf_puts(out, "[");
    for (size_t i = 0; i < list_count_const(key, base); i++) {
        buf_puts(out, i > 0 ? ", " : "");
        format_text(key->secret ? "***" : items[i], out);
    }
    buf_puts(out, "]");
}

void conf_value_format(const struct conf_key *key, const void *base, bool json, struct buf *out)
{
    const void *p = field_const(key, base);
    switch (key->kind) {
    case CONF_KIND_BOOL:
        buf_puts(out, *(const bool *)p ? "true" : "false");
        break;
    case CONF_KIND_UINT16:
        buf_printf(out, "%u", *(const uint16_t *)p);
        break;
    case CONF_KIND_UINT32:
        buf_printf(out, "%u", *(const uint32_t *)p);
        break;
    case CONF_KIND_INT32:
        buf_printf(out, "%d", *(const int32_t *)p);
        break;
    case CONF_KIND_INT64:
        buf_printf(out, "%lld", (long long)*(const int64_t *)p);
        break;
    case CONF_KIND_BYTES:
        format_bytes(*(const uint64_t *)p, json, out);
        break;
    case CONF_KIND_NUMBER:
        format_number(*(const double *)p, out);
        break;
    case CONF_KIND_TEXT:
    case CONF_KIND_PATH:
        format_text(key->secret ? "***" : *(char *const *)p, out);
        break;
    case CONF_KIND_CHOICE:
        buf_puts(out, "\"");
        choice_name(key->choices, *(const unsigned *)p, out);
        buf_puts(out, "\"");
        break;
    case CONF_KIND_LIST:
        format_list(key, base, out);
        break;
    }
}

void conf_value_type(const struct conf_key *key, char *buf, size_t cap)
{
    char choices[160] = "";
    if (key->choices != NULL)
        (void)choices_text(key->choices, choices, sizeof(choices));
    switch (key->kind) {
    case CONF_KIND_BOOL:
        (void)snprintf(buf, cap, "true or false");
        break;
    case CONF_KIND_UINT16:
    case CONF_KIND_UINT32:
    case CONF_KIND_INT32:
    case CONF_KIND_INT64:
        (void)snprintf(buf, cap, "whole number, %.15g to %.15g", key->min, key->max);
        break;
    case CONF_KIND_BYTES:
        (void)snprintf(buf, cap, "size (512MiB, 4GiB)");
        break;
    case CONF_KIND_NUMBER:
        (void)snprintf(buf, cap, "number, %.15g to %.15g", key->min, key->max);
        break;
    case CONF_KIND_TEXT:
    case CONF_KIND_CHOICE:
        (void)snprintf(buf, cap, "%s", choices[0] != '\0' ? choices : "text");
        break;
    case CONF_KIND_PATH:
        (void)snprintf(buf, cap, "path");
        break;
    case CONF_KIND_LIST:
        (void)snprintf(buf, cap, "list of %s", choices[0] != '\0' ? choices : "texts");
        break;
    }
}
