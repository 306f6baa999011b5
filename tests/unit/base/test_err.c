/* Errors carry code, errno, parameter and text, survive wrapping and never overflow. */
#include "unit.h"

#include <errno.h>

static void codes_have_names_and_statuses(void **state)
{
    assert_string_equal(err_code_name(ERR_OK), "ok");
    assert_string_equal(err_code_name(ERR_CONTEXT), "context_length_exceeded");
    assert_string_equal(err_code_name(ERR_INTERNAL), "internal_error");
    assert_int_equal(err_http_status(ERR_INVALID), 400);
    assert_int_equal(err_http_status(ERR_QUEUE_FULL), 503);
    assert_string_equal(err_code_name((enum err_code)9999), "internal_error");
    assert_int_equal(err_http_status((enum err_code)9999), 500);
}

static void set_fills_everything_and_clears_what_was_there(void **state)
{
    struct err e;
    memset(&e, 'x', sizeof(e));
    assert_int_equal(err_set(&e, ERR_MODEL, "no expert '%s'", "poet"), ERR_MODEL);
    assert_int_equal(e.code, ERR_MODEL);
    assert_int_equal(e.os_errno, 0);
    assert_string_equal(e.param, "");
    assert_string_equal(e.msg, "no expert 'poet'");
}

static void null_is_allowed_everywhere(void **state)
{
    assert_int_equal(err_set(NULL, ERR_BUSY, "x"), ERR_BUSY);
    assert_int_equal(err_set_errno(NULL, ERR_IO, "x"), ERR_IO);
    assert_int_equal(err_set_param(NULL, ERR_INVALID, "p", "x"), ERR_INVALID);
    assert_int_equal(err_wrap(NULL, "x"), ERR_INTERNAL);
}

static void errno_is_recorded_explained_and_kept(void **state)
{
    struct err e;
    errno = ENOSPC;
    assert_int_equal(err_set_errno(&e, ERR_IO, "cannot write %s", "f"), ERR_IO);
    assert_int_equal(errno, ENOSPC);
    assert_int_equal(e.os_errno, ENOSPC);
    assert_string_equal(e.msg, "cannot write f: No space left on device (errno 28)");
}

static void param_names_the_field(void **state)
{
    struct err e;
    assert_int_equal(err_set_param(&e, ERR_INVALID, "max_tokens", "must be at least %d", 1),
                     ERR_INVALID);
    assert_string_equal(e.param, "max_tokens");
    assert_string_equal(e.msg, "must be at least 1");
}

static void wrap_puts_context_first_and_keeps_the_rest(void **state)
{
    struct err e;
    errno = EIO;
    err_set_errno(&e, ERR_IO, "cannot read");
    assert_int_equal(err_wrap(&e, "expert '%s'", "poet"), ERR_IO);
    assert_int_equal(e.os_errno, EIO);
    assert_string_equal(e.msg, "expert 'poet': cannot read: Input/output error (errno 5)");
}

static void an_error_may_be_made_from_its_own_text(void **state)
{
    struct err e;
    err_set_param(&e, ERR_INVALID, "a.b", "inner");
    err_set_param(&e, ERR_CORRUPT, e.param, "outer of %s: %s", e.param, e.msg);
    assert_string_equal(e.param, "a.b");
    assert_string_equal(e.msg, "outer of a.b: inner");
}

static void long_texts_are_cut_between_characters(void **state)
{
    struct err e;
    /* One ASCII byte and 400 two-byte characters: the cut falls inside one of them. */
    char text[802] = "a";
    for (size_t i = 0; i < 400; i++)
        memcpy(text + 1 + 2 * i, "\xc3\xa9", 2);
    err_set_param(&e, ERR_INVALID, text, "%s", text);
    assert_true(strlen(e.msg) >= sizeof(e.msg) - 2);
    assert_true(utf8_valid(e.msg, strlen(e.msg)));
    assert_true(utf8_valid(e.param, strlen(e.param)));
    for (int i = 0; i < 50; i++)
        err_wrap(&e, "context %d %s", i, text);
    assert_true(strlen(e.msg) < sizeof(e.msg));
    assert_true(utf8_valid(e.msg, strlen(e.msg)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_have_names_and_statuses),
        cmocka_unit_test(set_fills_everything_and_clears_what_was_there),
        cmocka_unit_test(null_is_allowed_everywhere),
        cmocka_unit_test(errno_is_recorded_explained_and_kept),
        cmocka_unit_test(param_names_the_field),
        cmocka_unit_test(wrap_puts_context_first_and_keeps_the_rest),
        cmocka_unit_test(an_error_may_be_made_from_its_own_text),
        cmocka_unit_test(long_texts_are_cut_between_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
