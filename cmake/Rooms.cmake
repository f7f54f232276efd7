# A room is one folder, one library `zp_<name>`, one namespace. It lists the rooms and libraries it uses.
#
#   zp_room(NAME spec SRCS flops.cc DEPS zp_base TESTS flops_test.cc)
#
# Each test file becomes its own executable and ctest entry `<room>.<file>`.

add_library(zp_options INTERFACE)
target_compile_options(zp_options INTERFACE -Wall -Wextra -Werror -Wno-unused-parameter)
target_include_directories(zp_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
if(ZP_SANITIZE)
  # Debian's Abseil is built without sanitizers; its containers check that both sides agree, so only ours are instrumented.
  # GCC 12 sees uninitialised values in Boost.Beast once sanitizers have rewritten its control flow; Clang 14 cannot mark the
  # functions that coroutines become.
  target_compile_options(zp_options INTERFACE -fsanitize=${ZP_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=undefined
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> $<$<CXX_COMPILER_ID:Clang>:-fno-sanitize=function>)
  target_link_options(zp_options INTERFACE -fsanitize=${ZP_SANITIZE})
  if(ZP_SANITIZE MATCHES "thread")
    target_compile_options(zp_options INTERFACE -Wno-tsan)  # Boost.Asio's fences, which it cannot follow
  endif()
endif()

function(zp_room)
  cmake_parse_arguments(ROOM "" "NAME" "SRCS;DEPS;TESTS;TEST_DEPS" ${ARGN})
  if(ROOM_SRCS)
    add_library(zp_${ROOM_NAME} STATIC ${ROOM_SRCS})
    target_link_libraries(zp_${ROOM_NAME} PUBLIC ${ROOM_DEPS} zp_options)
  else()
    add_library(zp_${ROOM_NAME} INTERFACE)
    target_link_libraries(zp_${ROOM_NAME} INTERFACE ${ROOM_DEPS} zp_options)
  endif()
  foreach(test_source ${ROOM_TESTS})
    zp_test(ROOM ${ROOM_NAME} SOURCE ${test_source} DEPS zp_${ROOM_NAME} ${ROOM_TEST_DEPS})
  endforeach()
endfunction()

# UCX, once loaded, patches mmap and madvise for its cache of RDMA registrations; the thread sanitizer
# does not survive that, and no test has RDMA.
# What the thread sanitizer takes for races in Debian's libraries: tsan_suppressions.txt.
# Test data is found through ZP_SOURCE_DIR (the repository) and ZP_SHARED_DIR (optional, beside it).
function(zp_test)
  cmake_parse_arguments(TEST "" "ROOM;SOURCE" "DEPS;LABELS" ${ARGN})
  get_filename_component(stem ${TEST_SOURCE} NAME_WE)
  set(target ${TEST_ROOM}_${stem})
  add_executable(${target} ${TEST_SOURCE})
  target_link_libraries(${target} PRIVATE ${TEST_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  add_test(NAME ${TEST_ROOM}.${stem} COMMAND ${target})
  set_tests_properties(${TEST_ROOM}.${stem} PROPERTIES
    ENVIRONMENT "ZP_SOURCE_DIR=${PROJECT_SOURCE_DIR};ZP_SHARED_DIR=${PROJECT_SOURCE_DIR}/../shared;UCX_MEM_MMAP_HOOK_MODE=none;TSAN_OPTIONS=ignore_noninstrumented_modules=1:suppressions=${PROJECT_SOURCE_DIR}/cmake/tsan_suppressions.txt"
    LABELS "${TEST_LABELS}"
    TIMEOUT 600)
endfunction()
