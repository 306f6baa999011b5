/* Errors: filling the caller's struct err, and the tables behind enum err_code.
 *
 * Every message is formatted into a local buffer first, because callers wrap an error with its own
 * text (`err_set(e, code, "%s: %s", what, e->msg)`) and vsnprintf must not read what it writes. */
#include "base/base.h"

#include <errno.h>
#include <string.h>

static const char *const code_names[] = {
#define ERR_NAME(id, code, status) [id] = code,
    ERR_CODES(ERR_NAME)
#undef ERR_NAME
};

static const int code_statuses[] = {
#define ERR_STATUS(id, code, status) [id] = status,
    ERR_CODES(ERR_STATUS)
#undef ERR_STATUS
};

const char *err_code_name(enum err_code code)
{
    return (size_t)code < BASE_COUNT(code_names) ? code_names[code] : "internal_error";
}

int err_http_status(enum err_code code)
{
    return (size_t)code < BASE_COUNT(code_statuses) ? code_statuses[code] : 500;
}

/* Copy with truncation; a cut inside a UTF-8 character would make the JSON error body invalid. */
static void copy_text(char *dst, size_t cap, const char *src)
{
    size_t len = strlen(src);
    if (len >= cap)
        len = utf8_complete_prefix(src, cap - 1);
    memcpy(dst, src, len);
    dst[len] = '\0';
}

/* The longest text a message is built from before it is cut to fit: context plus a full message. */
enum { SCRATCH_BYTES = 2048 };

static void fill(struct err *e, enum err_code code, int os_errno, const char *param,
                 const char *msg)
{
    char param_copy[sizeof(e->param)];
    copy_text(param_copy, sizeof(param_copy), param);
    e->code = code;
    e->os_errno = os_errno;
    memcpy(e->param, param_copy, sizeof(param_copy));
    copy_text(e->msg, sizeof(e->msg), msg);
}

enum err_code err_set(struct err *e, enum err_code code, const char *fmt, ...)
{
    if (e == NULL)
        return code;
    char msg[SCRATCH_BYTES];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(msg, sizeof(msg), fmt, args);
    va_end(args);
    fill(e, code, 0, "", msg);
    return code;
}

enum err_code err_set_errno(struct err *e, enum err_code code, const char *fmt, ...)
{
    int saved = errno;
    if (e == NULL)
        return code;
    char msg[SCRATCH_BYTES], text[128];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(msg, sizeof(msg), fmt, args);
    va_end(args);
    size_t len = strlen(msg);
    (void)snprintf(msg + len, sizeof(msg) - len, ": %s (errno %d)",
                   strerror_r(saved, text, sizeof(text)), saved);
    fill(e, code, saved, "", msg);
    errno = saved;
    return code;
}

enum err_code err_set_param(struct err *e, enum err_code code, const char *param, const char *fmt,
                            ...)
{
    if (e == NULL)
        return code;
    char msg[SCRATCH_BYTES];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(msg, sizeof(msg), fmt, args);
    va_end(args);
    fill(e, code, 0, param != NULL ? param : "", msg);
    return code;
}

enum err_code err_wrap(struct err *e, const char *fmt, ...)
{
    if (e == NULL)
        return ERR_INTERNAL;
    char msg[SCRATCH_BYTES];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(msg, sizeof(msg) - sizeof(e->msg) - 2, fmt, args);
    va_end(args);
    size_t len = strlen(msg);
    (void)snprintf(msg + len, sizeof(msg) - len, ": %s", e->msg);
    copy_text(e->msg, sizeof(e->msg), msg);
    return e->code;
}
